#!/bin/sh
# Owns getting the binaries of a real control plane: prints the folder that holds etcd and kube-apiserver.
# Never prints anything else on stdout, and never leaves a binary that is only half built.
#
#   sh build.sh            etcd and kube-apiserver
#   sh build.sh kubectl    kubectl as well
#
# They are built once, from the Go modules pinned beside this file, and kept in the user's cache folder.
# Where KUBEBUILDER_ASSETS names a folder that has them already, it is used and nothing is built.
set -eu

say() { printf 'control plane: %s\n' "$*" >&2; }
fail() {
  say "$*"
  exit 1
}

case "$#${1-}" in
0) wanted='etcd kube-apiserver' ;;
1kubectl) wanted='etcd kube-apiserver kubectl' ;;
*) fail "usage: sh build.sh [kubectl]" ;;
esac

has_all() {
  for program in $wanted; do
    [ -x "$1/$program" ] || return 1
  done
}

if [ -n "${KUBEBUILDER_ASSETS-}" ]; then
  if has_all "$KUBEBUILDER_ASSETS"; then
    cd -- "$KUBEBUILDER_ASSETS"
    pwd
    exit 0
  fi
  say "KUBEBUILDER_ASSETS ($KUBEBUILDER_ASSETS) lacks one of: $wanted; building them instead"
fi

modules=${0%/*}
[ "$modules" != "$0" ] || modules=.
modules=$(cd -- "$modules" && pwd)

# The host's own platform and these modules alone, whatever the caller's environment says about other Go work.
unset GOOS GOARCH GOARM GOAMD64 GOEXPERIMENT
export CGO_ENABLED=0 GOWORK=off
needed='Go >= 1.26 is needed to build etcd and kube-apiserver for the tests: install it, or set KUBEBUILDER_ASSETS to a folder that has them'
command -v go >/dev/null || fail "$needed"
# Asked inside the module, where an older go fetches the toolchain the module asks for, if it may.
go_version=$(cd -- "$modules/kubernetes" && go env GOVERSION) || fail "$needed"
go_minor=$(printf '%s\n' "$go_version" | sed -n 's/.*go1\.\([0-9]*\).*/\1/p')
[ "${go_minor:-0}" -ge 26 ] || fail "$needed (found $go_version)"

version=$(sed -n 's|^[[:space:]]*k8s\.io/kubernetes \(v[0-9.]*\).*|\1|p' "$modules/kubernetes/go.mod")
minor=${version#v1.}
minor=${minor%%.*}
stamp=k8s.io/component-base/version
# go.sum is enforced (readonly). The stamp is what the API server answers under /version, which clients look at.
flags='-mod=readonly -trimpath -buildvcs=false'
ldflags="-s -w -X $stamp.gitVersion=$version -X $stamp.gitMajor=1 -X $stamp.gitMinor=$minor"

if command -v sha256sum >/dev/null; then sha256=sha256sum; else sha256='shasum -a 256'; fi
hash=$({
  cat "$modules"/kubernetes/go.mod "$modules"/kubernetes/go.sum "$modules"/etcd/go.mod "$modules"/etcd/go.sum
  printf '%s\n' "$flags" "$ldflags" "$go_version"
} | $sha256 | cut -c 1-12)
folder=${XDG_CACHE_HOME:-$HOME/.cache}/workflow-run-stop-operator/control-plane-$hash

if ! has_all "$folder"; then
  mkdir -p -- "$folder"
  folder=$(cd -- "$folder" && pwd)
  # With a lock, a second build waits for the first one. Without flock both build, and the last rename wins: a waste, but nothing breaks.
  if command -v flock >/dev/null; then
    exec 9>"$folder/.lock"
    if ! flock -n 9; then
      say "waiting for another build in $folder"
      flock 9
    fi
    rm -rf -- "$folder"/.building.* # what a killed build left behind
  fi
  building=$(mktemp -d "$folder/.building.XXXXXX")
  trap 'rm -rf -- "$building"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP

  # program, module, package, the time it takes
  build() {
    [ ! -x "$folder/$1" ] || return 0
    say "building $1 with $go_version, once: $4 on 2 cores"
    # Go leaves a helper process behind now and then: it must hold neither our lock nor our stdout.
    # shellcheck disable=SC2086 # the flags are words
    (cd -- "$modules/$2" && go build $flags -ldflags "$ldflags" -o "$building/$1" "$3") >&2 9>&- || fail "could not build $1"
    mv -f -- "$building/$1" "$folder/$1"
  }
  for program in $wanted; do
    case $program in
    etcd) build etcd etcd go.etcd.io/etcd/server/v3 'less than a minute' ;;
    kube-apiserver) build kube-apiserver kubernetes k8s.io/kubernetes/cmd/kube-apiserver '4 to 5 minutes' ;;
    kubectl) build kubectl kubernetes k8s.io/kubernetes/cmd/kubectl 'about 20 seconds more' ;;
    esac
  done
fi
printf '%s\n' "$folder"
