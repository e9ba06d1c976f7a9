#!/bin/sh
# Owns the programs of a real control plane: prints the folder of etcd and kube-apiserver, and builds them if missing.
# Never prints anything else on stdout, and never leaves a partly built program.
#
#   sh build.sh            etcd and kube-apiserver
#   sh build.sh kubectl    kubectl as well
#
# They are built once, from the Go modules pinned in ../go, and kept in the user's cache folder.
# If KUBEBUILDER_ASSETS names a folder that has them, that folder is used and nothing is built.
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
