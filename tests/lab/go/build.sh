# Owns the build of the Go programs of the test environment: from pinned modules, once, into the user's cache folder.
# Never prints on stdout, and never leaves a partly built program.
#
# The folders beside this script are Go modules that pin one program each, or a few. This script is sourced by the build.sh
# scripts of ../control-plane, ../node and ../prometheus, which set `what`, their name in messages. They call, in this order:
#   use_go MODULE PURPOSE    checks the Go version inside this module, where an older Go may download a newer toolchain
#   cache NAME FILE...       sets $folder, named by a hash of these files, the flags and the Go version
#   open_cache               creates $folder, and waits for another build in it
#   build PROGRAM MODULE PACKAGE TIME [FLAG...]    builds a program unless it exists; PROGRAM is its path in $folder
# A script sets `ldflags` and CGO_ENABLED as its programs need.

say() { printf '%s: %s\n' "$what" "$*" >&2; }
fail() {
  say "$*"
  exit 1
}

# Builds for the host's platform, from these modules only, whatever the caller's environment says.
unset GOOS GOARCH GOARM GOAMD64 GOEXPERIMENT GOFLAGS
export CGO_ENABLED=0 GOWORK=off

# readonly: go.sum is enforced.
flags='-mod=readonly -trimpath -buildvcs=false'
ldflags='-s -w'

use_go() {
  needed="Go >= 1.26 is needed to build $2"
  command -v go >/dev/null || fail "$needed"
  go_version=$(cd -- "$1" && go env GOVERSION) || fail "$needed"
  go_minor=$(printf '%s\n' "$go_version" | sed -n 's/.*go1\.\([0-9]*\).*/\1/p')
  [ "${go_minor:-0}" -ge 26 ] || fail "$needed (found $go_version)"
}

# Sets the version that Kubernetes programs report, because clients read it.
stamp_kubernetes() {
  version=$(sed -n 's|^[[:space:]]*k8s\.io/kubernetes \(v[0-9.]*\).*|\1|p' "$1/go.mod")
  minor=${version#v1.}
  minor=${minor%%.*}
  stamp=k8s.io/component-base/version
  ldflags="$ldflags -X $stamp.gitVersion=$version -X $stamp.gitMajor=1 -X $stamp.gitMinor=$minor"
}

cache() {
  if command -v sha256sum >/dev/null; then sha256=sha256sum; else sha256='shasum -a 256'; fi
  name=$1
  shift
  hash=$({
    cat "$@"
    printf '%s\n' "$flags" "$ldflags" "$go_version"
  } | $sha256 | cut -c 1-12)
  folder=${XDG_CACHE_HOME:-$HOME/.cache}/workflow-run-stop-operator/$name-$hash
}

open_cache() {
  mkdir -p -- "$folder"
  folder=$(cd -- "$folder" && pwd)
  # With flock, a second build waits for the first one. Without it both build, and the last rename wins, which is harmless.
  if command -v flock >/dev/null; then
    exec 9>"$folder/.lock"
    flock -n 9 || {
      say "waiting for another build in $folder"
      flock 9
    }
    rm -rf -- "$folder"/.building.* # left over from a killed build
  fi
  building=$(mktemp -d "$folder/.building.XXXXXX")
  go_build=
  trap '[ -z "$go_build" ] || kill "$go_build" 2>/dev/null || :; rm -rf -- "$building"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
}

build() {
  program=$1 module=$2 package=$3 takes=$4
  shift 4
  [ ! -x "$folder/$program" ] || return 0
  say "building ${program##*/} with $go_version, once: $takes on 2 cores"
  begun=$(date +%s)
  # Go prints a line for each module that it downloads, which is shown only if the build fails. It sometimes leaves a helper
  # process running, which must not hold the lock or stdout.
  # shellcheck disable=SC2086 # flags are split into words
  (cd -- "$module" && exec go build $flags -ldflags "$ldflags" -o "$building/program" "$@" "$package") \
    >"$building/log" 2>&1 9>&- &
  go_build=$!
  while sleep 1 && kill -0 "$go_build" 2>/dev/null; do
    took=$(($(date +%s) - begun))
    [ "$((took % 15))" -ne 0 ] || say "building ${program##*/}: $took s"
  done
  wait "$go_build" || {
    cat -- "$building/log" >&2
    fail "could not build ${program##*/}"
  }
  say "built ${program##*/} in $(($(date +%s) - begun)) s"
  mkdir -p -- "$(dirname -- "$folder/$program")"
  mv -f -- "$building/program" "$folder/$program"
}
