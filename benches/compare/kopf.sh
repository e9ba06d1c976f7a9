#!/bin/sh
# Owns the virtual environment of the Kopf contender: prints the path of its `kopf`, and installs it if missing.
# Never installs anything outside its folder, never compiles, and never waits longer than two minutes.
#
#   sh kopf.sh FOLDER
#
# On failure it prints the reason in one line on stderr.
set -eu

requirements=${0%/*}/requirements.txt
folder=$1

fail() {
  printf '%s\n' "$*" >&2
  exit 1
}
last_line() { printf '%s\n' "$1" | sed '/^$/d' | tail -n 1; }

# The copy of the requirements is written last: it marks a complete environment.
if ! cmp -s "$requirements" "$folder/requirements.txt"; then
  command -v python3 >/dev/null || fail 'python3 is missing'
  rm -rf -- "$folder"
  log=$(python3 -m venv "$folder" 2>&1) || fail "python3 -m venv: $(last_line "$log")"
  log=$(timeout 120 "$folder/bin/pip" install --quiet --only-binary :all: \
    --requirement "$requirements" 2>&1) || fail "pip install: $(last_line "${log:-it timed out}")"
  cp -- "$requirements" "$folder/requirements.txt"
fi
"$folder/bin/kopf" --version >/dev/null 2>&1 || fail "$folder/bin/kopf does not run: delete $folder"
printf '%s\n' "$folder/bin/kopf"
