# Owns the two processes of a control plane and its folder: they end with this script, and this script ends with its stdin.
# Never lets a process out of sight: each is started, signalled and waited for by its own pid.
#
# Arguments: the folder, the binaries' folder, then the ports of the API server, of etcd and of etcd's peers.
# Commands come on stdin, a word a line, each answered by `done`. On stdout beside that: `started NAME PID`, `ended NAME STATUS`.
folder=$1 binaries=$2 port=$3 etcd_port=$4 peer_port=$5
exec 2>>"$folder/supervisor.log"

# Only the end of stdin leads to the end below, and nothing cuts that short: no signal, and not that nobody listens any more.
trap '' INT TERM HUP PIPE

# Runs a program below a subshell that tells when it started and when it ended. The fifo holds this script until the pid file is there;
# it is a new one each time, since the writer of a line may still have it open when the next line is waited for.
run() {
  name=$1
  shift
  rm -f -- "$folder/running"
  mkfifo "$folder/running"
  (
    "$binaries/$name" "$@" </dev/null >>"$folder/$name.log" 2>&1 &
    echo "$!" >"$folder/$name.pid"
    echo "$!" >"$folder/running"
    echo "started $name $!"
    wait "$!"
    status=$?
    rm -f -- "$folder/$name.pid"
    echo "ended $name $status"
  ) &
  watcher=$!
  read -r _ <"$folder/running"
}

signal() {
  if [ -f "$folder/$2.pid" ]; then
    kill -"$1" "$(cat "$folder/$2.pid")"
  fi
}

run etcd \
  --name lab \
  --data-dir "$folder/etcd" \
  --unsafe-no-fsync \
  --listen-client-urls "http://127.0.0.1:$etcd_port" \
  --advertise-client-urls "http://127.0.0.1:$etcd_port" \
  --listen-peer-urls "http://127.0.0.1:$peer_port" \
  --initial-advertise-peer-urls "http://127.0.0.1:$peer_port" \
  --initial-cluster "lab=http://127.0.0.1:$peer_port"

while read -r command; do
  case $command in
  start)
    run kube-apiserver \
      --etcd-servers "http://127.0.0.1:$etcd_port" \
      --bind-address 127.0.0.1 \
      --secure-port "$port" \
      --advertise-address 127.0.0.1 \
      --endpoint-reconciler-type none \
      --cert-dir "$folder" \
      --tls-cert-file "$folder/server.pem" \
      --tls-private-key-file "$folder/server-key.pem" \
      --service-account-key-file "$folder/service-account.pem" \
      --service-account-signing-key-file "$folder/service-account-key.pem" \
      --service-account-issuer https://kubernetes.default.svc \
      --service-cluster-ip-range 10.0.0.0/24 \
      --authorization-mode RBAC \
      --token-auth-file "$folder/tokens.csv"
    apiserver=$watcher
    ;;
  kill)
    signal KILL kube-apiserver
    wait "$apiserver"
    ;;
  pause) signal STOP kube-apiserver ;;
  resume) signal CONT kube-apiserver ;;
  esac
  echo "done"
done

# Killed, not asked: nothing of it is kept, and a paused process would not answer.
signal KILL kube-apiserver
signal KILL etcd
wait
rm -rf -- "$folder"
