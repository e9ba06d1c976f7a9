#!/bin/sh
# Owns getting the programs of a real one-node cluster: prints the folder that holds them, as bin/ and cni/.
# Never prints anything else on stdout, and never leaves a program that is only half built.
#
# Beside the control plane's (../control-plane/build.sh): controller manager, scheduler, kubelet, kube-proxy, containerd,
# runc, two CNI plugins, helm, and the program of the pause image. They are built once, from the Go modules pinned in
# ../control-plane/kubernetes and beside this file, and kept in the user's cache folder.
#   sh build.sh            all of them
#   sh build.sh helm       helm alone
#
# Needs a C compiler and libseccomp's headers and static library (Debian: libseccomp-dev) for runc.
set -eu

say() { printf 'node: %s\n' "$*" >&2; }
fail() {
  say "$*"
  exit 1
}

here=${0%/*}
[ "$here" != "$0" ] || here=.
here=$(cd -- "$here" && pwd)
kubernetes=$here/../control-plane/kubernetes

control_plane=$(sh "$here/../control-plane/build.sh" kubectl)

# The host's own platform and these modules alone, whatever the caller's environment says about other Go work.
unset GOOS GOARCH GOARM GOAMD64 GOEXPERIMENT GOFLAGS
export GOWORK=off
command -v go >/dev/null || fail 'Go >= 1.26 is needed to build the programs of the node'
go_version=$(cd -- "$kubernetes" && go env GOVERSION)

version=$(sed -n 's|^[[:space:]]*k8s\.io/kubernetes \(v[0-9.]*\).*|\1|p' "$kubernetes/go.mod")
minor=${version#v1.}
minor=${minor%%.*}
stamp=k8s.io/component-base/version
# go.sum is enforced (readonly). The stamp is the version that the programs tell of themselves.
flags='-mod=readonly -trimpath -buildvcs=false'
ldflags="-s -w -X $stamp.gitVersion=$version -X $stamp.gitMajor=1 -X $stamp.gitMinor=$minor"

if command -v sha256sum >/dev/null; then sha256=sha256sum; else sha256='shasum -a 256'; fi
hash=$({
  cat "$kubernetes"/go.mod "$kubernetes"/go.sum "$here"/*/go.mod "$here"/*/go.sum "$here/pause.c" "$here/build.sh"
  printf '%s\n' "$go_version"
} | $sha256 | cut -c 1-12)
folder=${XDG_CACHE_HOME:-$HOME/.cache}/workflow-run-stop-operator/node-$hash

if [ ! -e "$folder/complete" ]; then
  mkdir -p -- "$folder/bin" "$folder/cni"
  # With a lock, a second build waits for the first one.
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

  # program in its folder, module, package, the time it takes, further flags
  build() {
    program=$1 module=$2 package=$3 takes=$4
    shift 4
    [ ! -x "$folder/$program" ] || return 0
    say "building ${program#*/} with $go_version, once: $takes on 2 cores"
    # Go leaves a helper process behind now and then: it must hold neither our lock nor our stdout.
    # shellcheck disable=SC2086 # the flags are words
    (cd -- "$module" && go build $flags -ldflags "$ldflags" -o "$building/program" "$@" "$package") >&2 9>&- ||
      fail "could not build ${program#*/}"
    mv -f -- "$building/program" "$folder/$program"
  }

  if [ "${1-}" = helm ]; then
    CGO_ENABLED=0 build bin/helm "$here/helm" helm.sh/helm/v4/cmd/helm '1 to 2 minutes'
    printf '%s\n' "$folder"
    exit 0
  fi

  # runc alone is C in part: it filters system calls with libseccomp, which is linked into it.
  [ -x "$folder/bin/runc" ] || pkg-config --exists libseccomp ||
    fail 'libseccomp is missing: install its headers and pkg-config (Debian: libseccomp-dev pkg-config)'
  all_ldflags=$ldflags
  ldflags='-s -w -linkmode external -extldflags -static'
  CGO_ENABLED=1 build bin/runc "$here/runc" github.com/opencontainers/runc 'less than a minute' \
    -tags 'seccomp urfave_cli_no_docs netgo osusergo'
  ldflags=$all_ldflags
  export CGO_ENABLED=0

  k8s=k8s.io/kubernetes/cmd
  build bin/kube-controller-manager "$kubernetes" $k8s/kube-controller-manager '1 to 2 minutes'
  build bin/kube-scheduler "$kubernetes" $k8s/kube-scheduler '10 seconds'
  build bin/kubelet "$kubernetes" $k8s/kubelet '30 seconds'
  build bin/kube-proxy "$kubernetes" $k8s/kube-proxy '10 seconds'
  containerd=github.com/containerd/containerd/v2/cmd
  build bin/containerd "$here/containerd" $containerd/containerd '1 minute'
  build bin/containerd-shim-runc-v2 "$here/containerd" $containerd/containerd-shim-runc-v2 'a few seconds'
  build bin/ctr "$here/containerd" $containerd/ctr 'a few seconds'
  plugins=github.com/containernetworking/plugins/plugins
  build cni/bridge "$here/cni" $plugins/main/bridge 'a few seconds'
  build cni/host-local "$here/cni" $plugins/ipam/host-local 'a few seconds'
  build bin/helm "$here/helm" helm.sh/helm/v4/cmd/helm '1 to 2 minutes'
  cc -Os -static -s -o "$building/pause" "$here/pause.c" && mv -f -- "$building/pause" "$folder/pause" ||
    fail 'could not build pause'
  : >"$folder/complete"
fi
for program in etcd kube-apiserver kubectl; do
  ln -sf -- "$control_plane/$program" "$folder/bin/$program"
done
printf '%s\n' "$folder"
