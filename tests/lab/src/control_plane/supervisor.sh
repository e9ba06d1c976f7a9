# Owns the two processes and the folder of a control plane: they end with this script, and this script ends when its stdin closes.
# Never signals a process by name: each is started, signalled and waited for by its pid.
#
# Arguments: the folder, the folder of the programs, the ports of the API server, of etcd clients and of etcd peers, then
# further flags of the API server.
# Stdin: commands, one word per line. Stdout: `done` after each command, `started NAME PID`, and `ended NAME STATUS`.
folder=$1 binaries=$2 port=$3 etcd_port=$4 peer_port=$5
shift 5
exec 2>>"$folder/supervisor.log"

# Only the end of stdin starts the cleanup below. Nothing interrupts it, neither a signal nor a closed stdout.
trap '' INT TERM HUP PIPE

# Runs a program in a subshell that reports its start and its end. The fifo blocks this script until the pid file exists.
# Each call makes a new fifo, because the previous writer may still have the old one open.
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
      --token-auth-file "$folder/tokens.csv" \
      "$@"
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

# SIGKILL: no data is kept, and a paused process would not handle SIGTERM.
signal KILL kube-apiserver
signal KILL etcd
wait
rm -rf -- "$folder"
