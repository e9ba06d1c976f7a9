# Owns how the programs beside the operator are built: from pinned Go modules, once, into the user's cache folder.
# Never prints on stdout, and never leaves a program that is only half built.
#
# Sourced by the build.sh scripts, which set `what`, their name in messages. Then, in this order:
#   use_go MODULE PURPOSE    asks for Go as it is inside this module, where an older one fetches the one that it asks for
#   cache NAME FILE...       names the folder for what these files, the flags and Go's version lead to: $folder
#   open_cache               makes it, and waits for another build in it
#   build PROGRAM MODULE PACKAGE TIME [FLAG...]    unless it is there already; PROGRAM is its path in the folder
# A script changes `ldflags` and CGO_ENABLED as its programs need.

say() { printf '%s: %s\n' "$what" "$*" >&2; }
fail() {
  say "$*"
  exit 1
}

# The host's own platform and these modules alone, whatever the caller's environment says about other Go work.
unset GOOS GOARCH GOARM GOAMD64 GOEXPERIMENT GOFLAGS
export CGO_ENABLED=0 GOWORK=off

# go.sum is enforced (readonly).
flags='-mod=readonly -trimpath -buildvcs=false'
ldflags='-s -w'

use_go() {
  needed="Go >= 1.26 is needed to build $2"
  command -v go >/dev/null || fail "$needed"
  go_version=$(cd -- "$1" && go env GOVERSION) || fail "$needed"
  go_minor=$(printf '%s\n' "$go_version" | sed -n 's/.*go1\.\([0-9]*\).*/\1/p')
  [ "${go_minor:-0}" -ge 26 ] || fail "$needed (found $go_version)"
}

# For programs of Kubernetes: the version that they tell of themselves, which clients look at.
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
  # With a lock, a second build waits for the first one. Without flock both build, and the last rename wins: a waste, but nothing breaks.
  if command -v flock >/dev/null; then
    exec 9>"$folder/.lock"
    flock -n 9 || {
      say "waiting for another build in $folder"
      flock 9
    }
    rm -rf -- "$folder"/.building.* # what a killed build left behind
  fi
  building=$(mktemp -d "$folder/.building.XXXXXX")
  trap 'rm -rf -- "$building"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
}

build() {
  program=$1 module=$2 package=$3 takes=$4
  shift 4
  [ ! -x "$folder/$program" ] || return 0
  say "building ${program##*/} with $go_version, once: $takes on 2 cores"
  # Go leaves a helper process behind now and then: it must hold neither our lock nor our stdout.
  # shellcheck disable=SC2086 # the flags are words
  (cd -- "$module" && go build $flags -ldflags "$ldflags" -o "$building/program" "$@" "$package") >&2 9>&- ||
    fail "could not build ${program##*/}"
  mkdir -p -- "$(dirname -- "$folder/$program")"
  mv -f -- "$building/program" "$folder/$program"
}
