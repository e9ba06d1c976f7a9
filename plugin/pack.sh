#!/usr/bin/env bash
# Owns packing `kubectl stop-run` for krew: the archive, and the manifest that knows its hash. `make plugin` calls it.
# Never depends on when or where it runs: the same content gives the same bytes. Needs GNU tar, gzip and sha256sum.
#
#   pack.sh FOLDER URI [amd64|arm64]
#
# URI is where the archive will be published; its last part is the archive's name.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

[ "$#" -ge 2 ] || { echo 'usage: pack.sh FOLDER URI [amd64|arm64]' >&2; exit 2; }
folder=$1 uri=$2 architecture=${3:-amd64}
archive=$folder/${uri##*/}
binary=$(bash image/binary.sh kubectl-stop_run "$architecture")

content=$(mktemp -d)
trap 'rm -rf -- "$content"' EXIT
install -m 755 -- "$binary" "$content/kubectl-stop_run"
install -m 644 -- LICENSE "$content/LICENSE"
mkdir -p -- "$folder"
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || printf 0)}
tar --format=ustar --sort=name --mtime="@$epoch" --owner=0 --group=0 --numeric-owner -C "$content" -c . | gzip -n -9 >"$archive"

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
sha256=$(sha256sum "$archive" | cut -d ' ' -f 1)
sed "s|@VERSION@|v$version|; s|@ARCH@|$architecture|; s|@URI@|$uri|; s|@SHA256@|$sha256|" plugin/stop-run.yaml >"$folder/stop-run.yaml"
printf '%s: sha256:%s, %s bytes; %s\n' "$archive" "$sha256" "$(stat -c %s "$archive")" "$folder/stop-run.yaml" >&2
