# Owns what a script does with a node: the simulated Amperity, the operator's chart, stops, and waiting for them.
# Never starts or stops anything by itself. The script that sources it sets `work` (the node's folder), `programs` (what
# build.sh printed), `image`, and `sim` (the path of amperity-sim), runs in the root of the repository, and defines `fail`.

NODE=tests/lab/node/node.sh
CHART=charts/workflow-run-stop-operator
RELEASE=stopper NAMESPACE=operator-system
API=http://amperity.lab:8080/api

in_node() { bash $NODE in "$work" "$@"; }
k() { in_node kubectl "$@"; }

# Repeats a command until it succeeds: timeout in seconds, description, command.
until_true() {
  local timeout=$1 what=$2 deadline=$((SECONDS + $1))
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || fail "timed out after $timeout s: $what"
    sleep 0.3
  done
}

# Starts the node with the images of these archives.
start_node() {
  mkdir -p "$work/images"
  cp "$@" "$work/images/"
  bash $NODE start "$work" "$programs"
}

# Starts a simulated Amperity in the node: the name of its log, port, further flags.
start_amperity() {
  local name=$1 port=$2
  shift 2
  in_node "$sim" --listen "10.99.0.1:$port" "$@" >"$work/log/$name.log" 2>&1 &
  until_true 10 'the simulated Amperity is running' grep -q serving "$work/log/$name.log"
}

# Prints the number of stop requests that Amperity received for a run.
posts() { cat "$work"/requests*.jsonl | grep '"kind":"stop"' | grep -c "\"run\":\"$1\"" || true; }
was_received() { [ "$(posts "$1")" -ge 1 ]; }

# Prints a stop with the token of examples/secret.yaml: name, run, namespace, further lines of the spec.
stop_manifest() {
  cat <<END
apiVersion: workflow.amperity.com/v1alpha1
kind: WorkflowRunStop
metadata: {name: $1, namespace: ${3:-default}}
spec:
  runId: $2
  tenant: acme2-max
  credentialsSecretRef: {name: amperity}
${4-}
END
}
apply_stop() { stop_manifest "$@" | k apply -f -; }

pods() { k get pods -n $NAMESPACE -l app.kubernetes.io/instance=$RELEASE "$@"; }
holder() { k get lease -n $NAMESPACE -o 'jsonpath={.items[0].spec.holderIdentity}'; }
leader() { local id; id=$(holder) && [ -n "$id" ] && printf '%s' "${id%_*}"; }
leader_is_pod() { k get pod -n $NAMESPACE "$(leader)"; }

# Installs or upgrades the release with the image, the simulated Amperity and short timeouts. A script adds flags in extra.
extra=()
helm_values() {
  in_node helm "$1" $RELEASE "$2" --namespace $NAMESPACE --wait --timeout 90s \
    --set "image.repository=${image%:*}" --set-string "image.tag=${image##*:}" \
    --set "amperity.baseUrl=$API" --set requestTimeout=10s --set settleTime=5s "${extra[@]}" >>"$work/log/helm.log"
}
