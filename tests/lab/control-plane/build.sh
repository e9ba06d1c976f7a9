#!/bin/sh
# Owns the programs of a real control plane: prints the folder of etcd and kube-apiserver, and fetches or builds them if missing.
# Never prints anything else on stdout, and never leaves a partly built program.
#
#   sh build.sh            etcd and kube-apiserver
#   sh build.sh kubectl    kubectl as well
#
# setup-envtest fetches the prebuilt ones of the same minor version of Kubernetes, which takes seconds. Without an answer
# within 10 s, they are built from the Go modules pinned in ../go, which takes minutes. Either is done once, into the
# user's cache folder.
#   KUBEBUILDER_ASSETS     a folder that has the programs: it is used, and nothing is fetched or built
#   ENVTEST_INDEX          the URL of another index for setup-envtest, such as that of a mirror
#   BUILD_CONTROL_PLANE=1  always builds, so that the version is the pinned one
set -eu

here=${0%/*}
[ "$here" != "$0" ] || here=.
here=$(cd -- "$here" && pwd)
what='control plane'
modules=$here/../go
. "$modules/build.sh"

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

use_go "$modules/kubernetes" \
  'etcd and kube-apiserver for the tests: install it, or set KUBEBUILDER_ASSETS to a folder that has them'
stamp_kubernetes "$modules/kubernetes"
cache control-plane "$modules"/kubernetes/go.mod "$modules"/kubernetes/go.sum "$modules"/etcd/go.mod "$modules"/etcd/go.sum

# Runs a command, and ends it after this many seconds.
within() {
  limit=$1
  shift
  "$@" 9>&- &
  limited=$!
  (
    trap 'kill "$sleeping"; exit' TERM
    sleep "$limit" &
    sleeping=$!
    wait "$sleeping"
    kill "$limited"
  ) 2>/dev/null >&2 9>&- &
  timer=$!
  wait "$limited" && status=0 || status=$?
  kill "$timer" 2>/dev/null || :
  return "$status"
}

build_envtest() {
  cd -- "$modules/setup-envtest"
  exec go build $flags -o "$building/setup-envtest" sigs.k8s.io/controller-runtime/tools/setup-envtest
}

# Fetches the prebuilt programs into $folder.
fetch() {
  minor=${version#v}
  minor=${minor%.*}
  say "looking for prebuilt programs of Kubernetes $minor"
  within 60 build_envtest >/dev/null 2>&1 || return 1
  envtest() {
    within "$1" "$building/setup-envtest" "$2" "$minor.x" --bin-dir "$building/envtest" \
      ${ENVTEST_INDEX:+--index "$ENVTEST_INDEX"} -p path 2>"$building/log"
  }
  envtest 10 list >/dev/null && prebuilt=$(envtest 300 use) && has_all "$prebuilt" || return 1
  chmod -R u+w -- "$building/envtest"
  mv -f -- "$prebuilt"/* "$folder/"
  say "fetched $("$folder/kube-apiserver" --version)"
}

if ! has_all "$folder" && [ -z "${BUILD_CONTROL_PLANE-}" ]; then
  built=$folder
  folder=$built-prebuilt
  if ! has_all "$folder"; then
    open_cache
    fetch || {
      say 'no prebuilt programs can be fetched: building them'
      rm -rf -- "$building"
      folder=$built
    }
  fi
fi
if ! has_all "$folder"; then
  open_cache
  for program in $wanted; do
    case $program in
    etcd) build etcd "$modules/etcd" go.etcd.io/etcd/server/v3 'less than a minute' ;;
    kube-apiserver) build kube-apiserver "$modules/kubernetes" k8s.io/kubernetes/cmd/kube-apiserver '4 to 5 minutes' ;;
    kubectl) build kubectl "$modules/kubernetes" k8s.io/kubernetes/cmd/kubectl 'about 20 seconds more' ;;
    esac
  done
fi
printf '%s\n' "$folder"
