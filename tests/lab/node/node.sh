#!/usr/bin/env bash
# Owns a real one-node Kubernetes cluster in private namespaces of this machine: check, start, commands, and stop.
# Never uses a network, and never leaves anything outside its folder except its own cgroups, which `stop` removes.
#
#   node.sh check                   checks that this machine can run it; otherwise prints the reason, exit status 3
#   node.sh start FOLDER PROGRAMS   PROGRAMS is what build.sh printed; returns when the node is Ready
#   node.sh in FOLDER COMMAND...    runs a command inside, with kubectl, helm and ctr in PATH and an administrator's KUBECONFIG
#   node.sh stop FOLDER             kills all its processes, including pods; the logs stay in FOLDER/log
#
# The node is 10.99.0.1, its pods 10.98.0.0/24, its Services 10.96.0.0/24. Pods use 10.99.0.1 as DNS server:
# `amperity-sim --dns` serves it.
set -euo pipefail

NODE=10.99.0.1
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

say() { printf 'node: %s\n' "$*" >&2; }
fail() {
  say "$*"
  exit 1
}

# Programs of the system, which build.sh does not build.
NEEDED='unshare nsenter mount ip openssl curl nft pgrep'

check() {
  cannot() {
    say "this machine cannot run a node: $*"
    exit 3
  }
  [ "$(uname -s)" = Linux ] || cannot 'it is not Linux'
  [ "$(id -u)" -eq 0 ] || cannot 'root is needed, for namespaces and cgroups'
  local program
  for program in $NEEDED; do
    command -v "$program" >/dev/null || cannot "$program is missing"
  done
  unshare --net --mount --uts --ipc --pid --fork --kill-child --mount-proc \
    sh -c 'mount -t tmpfs tmpfs /run && ip link set lo up && echo 1 >/proc/sys/net/ipv4/ip_forward && nft list ruleset >/dev/null' \
    2>/dev/null || cannot 'root cannot create namespaces, mount in them, or use nftables there'
  unshare --net sh -c 'ip link add br0 type bridge && ip link add veth0 type veth peer name veth1' 2>/dev/null ||
    cannot 'its kernel has no bridge or veth'
  [ -w /sys/fs/cgroup ] || cannot 'its cgroups are not writable'
  local probe
  for probe in /sys/fs/cgroup /sys/fs/cgroup/memory; do
    [ -e "$probe/memory.usage_in_bytes" ] || [ -e "$probe/cgroup.controllers" ] || continue
    mkdir "$probe/node-check-$$" 2>/dev/null || cannot "cannot create a cgroup in $probe"
    rmdir "$probe/node-check-$$"
  done
}

# Prints the cgroup of the pods. It differs between nodes, so that two nodes do not share one.
cgroup_name() { printf 'node-%s' "$(printf '%s' "$1" | cksum | cut -d ' ' -f 1)"; }

# Creates the cgroup in every hierarchy of version 1, or in the one of version 2. The kubelet requires it.
make_cgroup() {
  local hierarchy file
  for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/*; do
    [ -e "$hierarchy/cgroup.procs" ] && [ ! -L "$hierarchy" ] || continue
    [ "$hierarchy" = /sys/fs/cgroup ] || [ ! -e /sys/fs/cgroup/cgroup.controllers ] || continue
    mkdir -p -- "$hierarchy/$1"
    # In version 1, a new cgroup has no CPUs and no memory nodes until they are set.
    for file in cpuset.cpus cpuset.mems; do
      [ ! -e "$hierarchy/$file" ] || cat "$hierarchy/$file" >"$hierarchy/$1/$file"
    done
  done
}

# Prints the host pid of the process that is pid 1 inside.
inner() { pgrep -P "$(cat "$1/unshare.pid")" 2>/dev/null | head -n 1; }

start() {
  local folder programs begun=$SECONDS
  mkdir -p -- "$1"
  folder=$(cd -- "$1" && pwd) programs=$(cd -- "$2" && pwd)
  case $folder in
  /var/* | /run/*) fail "$folder cannot be used: inside, /var and /run are replaced" ;;
  esac
  mkdir -p -- "$folder/log" "$folder/images"
  make_cgroup "$(cgroup_name "$folder")"
  archive_of_pause "$programs" "$folder/images/pause.tar"
  # --kill-child: pid 1 ends together with unshare, and with pid 1 every process in the namespaces.
  # The node does not inherit the caller's descriptors: a reader of our output must not wait until the node stops.
  FOLDER=$folder PROGRAMS=$programs setsid unshare --net --mount --uts --ipc --pid --fork --kill-child --mount-proc \
    bash "$here/node.sh" inside </dev/null >"$folder/log/node.log" 2>&1 3>&- 9>&- &
  echo $! >"$folder/unshare.pid"
  until grep -qx READY "$folder/log/node.log"; do
    kill -0 "$(cat "$folder/unshare.pid")" 2>/dev/null && [ $((SECONDS - begun)) -lt 120 ] || {
      say 'the node did not become ready; the last lines of its logs:'
      tail -n 15 "$folder"/log/*.log >&2
      stop "$folder"
      exit 1
    }
    sleep 0.2
  done
}

within() {
  local folder pid
  folder=$(cd -- "$1" && pwd)
  shift
  pid=$(inner "$folder")
  [ -n "$pid" ] || fail 'the node is not running'
  KUBECONFIG=$folder/pki/admin.kubeconfig PATH=$(cat "$folder/programs")/bin:$PATH \
    exec nsenter --target "$pid" --net --mount --uts --ipc --pid --wdns="$PWD" -- "$@"
}

stop() {
  local folder pid cgroup
  folder=$(cd -- "$1" 2>/dev/null && pwd) || return 0
  [ -e "$folder/unshare.pid" ] || return 0
  pid=$(inner "$folder") || true
  [ -z "$pid" ] || kill -KILL "$pid" 2>/dev/null || true
  while kill -0 "$(cat "$folder/unshare.pid")" 2>/dev/null; do sleep 0.1; done
  # The kernel does not remove empty cgroups. They are removed from the leaves to the root.
  for cgroup in /sys/fs/cgroup/{,*/}"$(cgroup_name "$folder")"; do
    [ ! -d "$cgroup" ] || find "$cgroup" -depth -type d -exec rmdir {} \; 2>/dev/null || true
  done
  rm -rf -- "$folder/var" "$folder/unshare.pid" "$folder/pki"
}

# Creates the archive of the pause image, because there is no registry to pull it from.
archive_of_pause() {
  [ -e "$2" ] || (
    root=$(mktemp -d)
    trap 'rm -rf -- "$root"' EXIT
    install -m 755 -- "$1/pause" "$root/pause"
    machine=$(uname -m | sed 's/x86_64/amd64/;s/aarch64/arm64/')
    bash "$here/../../../image/oci-archive.sh" "$2" localhost/pause:1 "linux/$machine" "$root" '{"Entrypoint":["/pause"]}' 2>/dev/null
  )
}

# --- Functions of pid 1 in the namespaces ---------------------------------------------------------------------------

inside() {
  export PATH=$PROGRAMS/bin:$PATH
  printf '%s\n' "$PROGRAMS" >"$FOLDER/programs"
  private_machine
  certificates
  configuration
  cd -- "$FOLDER/conf"
  run_services
  import_images
  export KUBECONFIG=$FOLDER/pki/admin.kubeconfig
  until kubectl wait --for=condition=Ready node/n1 --timeout=5s && kubectl get serviceaccount default; do sleep 0.2; done >/dev/null 2>&1
  echo READY
  # Pid 1 has to reap orphaned processes.
  while :; do wait -n || sleep 0.5; done
}

private_machine() {
  hostname n1
  mkdir -p -- "$FOLDER/var" "$FOLDER/pki" "$FOLDER/conf/cni.d"
  # The state of kubelet, containerd and etcd is in the folder; sockets are in a tmpfs.
  mount --bind "$FOLDER/var" /var
  mkdir -p /var/lib /var/log /var/tmp
  mount -t tmpfs tmpfs /run
  # The kubelet requires these settings of the host. It reads them from bind-mounted files, so that the host stays unchanged.
  local setting
  for setting in vm/overcommit_memory=1 kernel/panic=10 kernel/panic_on_oops=1; do
    echo "${setting#*=}" >"$FOLDER/conf/${setting##*/}"
    mount --bind "$FOLDER/conf/${setting##*/}" "/proc/sys/${setting%=*}"
  done
  # There is no default route. The route to the Services lets the node reach them, before kube-proxy rewrites the address.
  ip link set lo up
  ip addr add $NODE/32 dev lo
  ip route add 10.96.0.0/24 dev lo src $NODE
  echo 1 >/proc/sys/net/ipv4/ip_forward
}

# Creates a certificate signed by the cluster's CA and a kubeconfig that uses it: name, subject, extensions.
certificate() {
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$1.key" -out "$1.csr" -subj "$2"
  printf 'keyUsage=digitalSignature\n%b\n' "$3" >"$1.ext"
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile "$1.ext" -out "$1.crt"
  cat >"$1.kubeconfig" <<END
apiVersion: v1
kind: Config
current-context: lab
contexts: [{name: lab, context: {cluster: lab, user: $1}}]
clusters: [{name: lab, cluster: {server: "https://$NODE:6443", certificate-authority: "$FOLDER/pki/ca.crt"}}]
users: [{name: $1, user: {client-certificate: "$FOLDER/pki/$1.crt", client-key: "$FOLDER/pki/$1.key"}}]
END
}

certificates() {
  cd -- "$FOLDER/pki"
  local component client=extendedKeyUsage=clientAuth server="extendedKeyUsage=serverAuth\nsubjectAltName=IP:$NODE"
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.crt -days 30 -subj /CN=lab
  certificate apiserver /CN=kube-apiserver "$server,IP:10.96.0.1,DNS:kubernetes.default.svc"
  certificate kubelet /CN=n1 "$server,DNS:n1"
  certificate admin /O=system:masters/CN=admin $client
  certificate apiserver-to-kubelet /O=system:masters/CN=apiserver $client
  certificate node /O=system:nodes/CN=system:node:n1 $client
  for component in kube-controller-manager kube-scheduler kube-proxy; do
    certificate $component /CN=system:$component $client
  done
  openssl ecparam -name prime256v1 -genkey -noout -out serviceaccounts.key
  openssl ec -in serviceaccounts.key -pubout -out serviceaccounts.pub
}

configuration() {
  cd -- "$FOLDER/conf"
  cat >authentication.yaml <<END
apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
anonymous: {enabled: true, conditions: [{path: /readyz}]}
END
  # failCgroupV1: false allows machines with cgroups of version 1. Images are never collected, because they cannot be pulled again.
  cat >kubelet.yaml <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /$(cgroup_name "$FOLDER")
address: $NODE
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: "$FOLDER/pki/ca.crt"}}
authorization: {mode: Webhook}
tlsCertFile: "$FOLDER/pki/kubelet.crt"
tlsPrivateKeyFile: "$FOLDER/pki/kubelet.key"
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
volumePluginDir: /var/lib/kubelet/volume-plugins
clusterDNS: [$NODE]
clusterDomain: cluster.local
resolvConf: ""
failSwapOn: false
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
END
  # restrict_oom_score_adj: pods can start even if root may not lower that score (CAP_SYS_RESOURCE).
  cat >containerd.toml <<END
version = 4
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "localhost/pause:1"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  cni = { bin_dirs = ["$PROGRAMS/cni"], conf_dir = "$FOLDER/conf/cni.d", use_internal_loopback = true }
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  options = { BinaryName = "$PROGRAMS/bin/runc", SystemdCgroup = false }
END
  cat >cni.d/10-pods.conflist <<END
{"cniVersion": "1.0.0", "name": "pods", "plugins": [{
  "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
  "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam", "ranges": [[{"subnet": "10.98.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}
}]}
END
  cat >kube-proxy.yaml <<END
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {kubeconfig: "$FOLDER/pki/kube-proxy.kubeconfig"}
hostnameOverride: n1
bindAddress: $NODE
clusterCIDR: 10.98.0.0/24
conntrack: {maxPerCore: 0}
END
}

# Starts a program in the background; its log has the program's name.
service() { "$@" >"$FOLDER/log/$1.log" 2>&1 & }

# Starts a control plane component that authenticates its own clients at the API server.
client_service() {
  local program=$1 kubeconfig=$FOLDER/pki/$1.kubeconfig
  shift
  service "$program" "--kubeconfig=$kubeconfig" "--authentication-kubeconfig=$kubeconfig" \
    "--authorization-kubeconfig=$kubeconfig" --bind-address=127.0.0.1 --leader-elect=false "$@"
}

run_services() {
  local pki=$FOLDER/pki
  service containerd --config containerd.toml
  # Default ports everywhere: the network is private. No fsync: the state is removed with the node.
  service etcd --data-dir /var/lib/etcd --unsafe-no-fsync
  service kube-apiserver --etcd-servers=http://127.0.0.1:2379 --bind-address=$NODE --advertise-address=$NODE \
    --service-cluster-ip-range=10.96.0.0/24 --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
    --authentication-config=authentication.yaml --client-ca-file="$pki/ca.crt" \
    --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" \
    --kubelet-client-certificate="$pki/apiserver-to-kubelet.crt" --kubelet-client-key="$pki/apiserver-to-kubelet.key" \
    --kubelet-certificate-authority="$pki/ca.crt" --kubelet-preferred-address-types=InternalIP \
    --service-account-issuer=https://kubernetes.default.svc \
    --service-account-signing-key-file="$pki/serviceaccounts.key" --service-account-key-file="$pki/serviceaccounts.pub"
  until curl -sf --noproxy '*' --cacert "$pki/ca.crt" "https://$NODE:6443/readyz" >/dev/null; do sleep 0.1; done
  # With the default rate limit of the controller manager's client, a new cluster takes 5 s longer to become usable.
  client_service kube-controller-manager --use-service-account-credentials --kube-api-qps=300 --kube-api-burst=600 \
    --service-account-private-key-file="$pki/serviceaccounts.key" --root-ca-file="$pki/ca.crt"
  client_service kube-scheduler
  service kubelet --config=kubelet.yaml --kubeconfig="$pki/node.kubeconfig" --hostname-override=n1 --node-ip=$NODE
  service kube-proxy --config=kube-proxy.yaml
}

import_images() {
  until ctr version >/dev/null 2>&1; do sleep 0.1; done
  local archive
  for archive in "$FOLDER"/images/*.tar; do
    ctr --namespace k8s.io images import "$archive"
  done
}

case "$#${1-}" in
1check) check ;;
3start) start "$2" "$3" ;;
2stop) stop "$2" ;;
1inside) inside ;;
*)
  [ "${1-}" = in ] && [ "$#" -ge 3 ] || fail 'usage: node.sh check | start FOLDER PROGRAMS | in FOLDER COMMAND... | stop FOLDER'
  shift
  within "$@"
  ;;
esac
