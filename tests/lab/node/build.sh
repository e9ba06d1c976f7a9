#!/bin/sh
# Owns the programs of a real one-node cluster: prints their folder, with bin/ and cni/, and builds them if missing.
# Never prints anything else on stdout, and never leaves a partly built program.
#
# In addition to those of ../control-plane/build.sh: controller manager, scheduler, kubelet, kube-proxy, containerd,
# runc, two CNI plugins, helm, and the program of the pause image. They are built once, from the Go modules pinned in ../go,
# and kept in the user's cache folder.
#   sh build.sh            all of them
#   sh build.sh helm       helm only
#
# Needs a C compiler and libseccomp's headers and static library (Debian: libseccomp-dev) for runc.
set -eu

here=${0%/*}
[ "$here" != "$0" ] || here=.
here=$(cd -- "$here" && pwd)
what=node
modules=$here/../go
. "$modules/build.sh"
kubernetes=$modules/kubernetes

control_plane=$(sh "$here/../control-plane/build.sh" kubectl)

use_go "$kubernetes" 'the programs of the node'
stamp_kubernetes "$kubernetes"
cache node "$modules"/kubernetes/go.* "$modules"/cni/go.* "$modules"/containerd/go.* "$modules"/helm/go.* "$modules"/runc/go.* \
  "$here/pause.c" "$here/build.sh"

if [ ! -e "$folder/complete" ]; then
  open_cache
  if [ "${1-}" = helm ]; then
    build bin/helm "$modules/helm" helm.sh/helm/v4/cmd/helm '1 to 2 minutes'
    printf '%s\n' "$folder"
    exit 0
  fi

  # Only runc needs cgo: it links libseccomp statically, to filter system calls.
  [ -x "$folder/bin/runc" ] || pkg-config --exists libseccomp ||
    fail 'libseccomp is missing: install its headers and pkg-config (Debian: libseccomp-dev pkg-config)'
  all_ldflags=$ldflags
  ldflags='-s -w -linkmode external -extldflags -static'
  CGO_ENABLED=1 build bin/runc "$modules/runc" github.com/opencontainers/runc 'less than a minute' \
    -tags 'seccomp urfave_cli_no_docs netgo osusergo'
  ldflags=$all_ldflags
  export CGO_ENABLED=0

  k8s=k8s.io/kubernetes/cmd
  build bin/kube-controller-manager "$kubernetes" $k8s/kube-controller-manager '1 to 2 minutes'
  build bin/kube-scheduler "$kubernetes" $k8s/kube-scheduler '10 seconds'
  build bin/kubelet "$kubernetes" $k8s/kubelet '30 seconds'
  build bin/kube-proxy "$kubernetes" $k8s/kube-proxy '10 seconds'
  containerd=github.com/containerd/containerd/v2/cmd
  build bin/containerd "$modules/containerd" $containerd/containerd '1 minute'
  build bin/containerd-shim-runc-v2 "$modules/containerd" $containerd/containerd-shim-runc-v2 'a few seconds'
  build bin/ctr "$modules/containerd" $containerd/ctr 'a few seconds'
  plugins=github.com/containernetworking/plugins/plugins
  build cni/bridge "$modules/cni" $plugins/main/bridge 'a few seconds'
  build cni/host-local "$modules/cni" $plugins/ipam/host-local 'a few seconds'
  build bin/helm "$modules/helm" helm.sh/helm/v4/cmd/helm '1 to 2 minutes'
  cc -Os -static -s -o "$building/pause" "$here/pause.c" && mv -f -- "$building/pause" "$folder/pause" ||
    fail 'could not build pause'
  : >"$folder/complete"
fi
for program in etcd kube-apiserver kubectl; do
  ln -sf -- "$control_plane/$program" "$folder/bin/$program"
done
printf '%s\n' "$folder"
