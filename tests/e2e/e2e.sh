#!/usr/bin/env bash
# Owns the test of the image, the chart and the operator's pods in a real cluster, from install to uninstall. Everything
# runs on this machine, in a node with its own Linux namespaces (tests/lab/node).
# Never reaches another cluster, a registry or the real Amperity. Stops all its processes, whatever the result.
#
#   e2e.sh IMAGE_ARCHIVE IMAGE AMPERITY_SIM     `make e2e` builds all three and runs it
#
# KEEP=1 keeps the cluster of a failed run and prints how to use it. E2E_REQUIRED=1 turns "skipped" into a failure.
# -E: functions inherit the ERR trap.
set -eEuo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."

[ "$#" -eq 3 ] || { echo 'usage: e2e.sh IMAGE_ARCHIVE IMAGE AMPERITY_SIM' >&2; exit 2; }
archive=$1 image=$2 sim=$3

. tests/lab/node/cluster.sh
TLS_API=https://amperity.lab:8443/api

if ! why=$(bash $NODE check 2>&1); then
  printf 'e2e: SKIPPED, nothing was tested: %s\n' "$why" >&2
  [ -z "${E2E_REQUIRED-}" ] || exit 1
  exit 0
fi

# --- Helper functions ------------------------------------------------------------------------------------------------

started=$SECONDS step_started=$SECONDS
current_step='start'

# Begins a step.
step() {
  current_step=$1
  step_started=$SECONDS
  printf '\n--- %s\n' "$1"
}
# Ends a step with what it has shown.
passed() { printf '    passed: %s (%s s)\n' "$1" "$((SECONDS - step_started))"; }

fail() {
  printf 'e2e: FAILED in "%s": %s\n' "$current_step" "$*" >&2
  exit 1
}

# Succeeds if a stop has exactly these events in this order.
has_events() { [ "$(k get events --field-selector "involvedObject.name=$1" -o 'jsonpath={.items[*].reason}')" = "$2" ]; }

# Prints the number of all stop requests that Amperity received.
all_posts() { cat "$work"/requests*.jsonl | grep -c '"kind":"stop"' || true; }
once() {
  local run
  for run in "$@"; do
    [ "$(posts "$run")" -eq 1 ] || fail "$(posts "$run") stop requests instead of one for $run"
  done
}

# Prints a condition as "True RunStopped": name, condition, namespace.
condition() {
  k get workflowrunstop "$1" -n "${3:-default}" \
    -o "jsonpath={range .status.conditions[?(@.type==\"$2\")]}{.status} {.reason}{end}"
}
# Waits until a stop has finished and checks its condition Ready: name, expected, namespace.
finishes_as() {
  k wait "workflowrunstop/$1" -n "${3:-default}" --for='jsonpath={.status.completionTime}' --timeout=90s
  local ready
  ready=$(condition "$1" Ready "${3:-default}")
  [ "$ready" = "$2" ] || fail "$1 finished as \"$ready\" instead of \"$2\""
}

leader_changed() { local now; now=$(leader) && [ "$now" != "$1" ]; }

is_unreachable() { [ "$(condition "$1" Ready)" = 'False Unreachable' ]; }
no_pods() { [ -z "$(pods -o name)" ]; }
# Prints each finished resource with its resource version, which changes with every write.
finished() {
  k get workflowrunstops -A \
    -o 'jsonpath={range .items[?(@.status.completionTime)]}{.metadata.uid} {.metadata.name} {.metadata.resourceVersion}{"\n"}{end}'
}

print_logs() {
  printf '\n=== resources\n'
  k get workflowrunstops,pods,leases -A -o wide
  k get events -A --sort-by=.lastTimestamp | tail -n 25
  printf '\n=== operator\n'
  local pod
  for pod in $(pods -o name); do
    printf -- '--- %s\n' "$pod"
    k logs -n $NAMESPACE "$pod" --all-containers --tail=40
    k logs -n $NAMESPACE "$pod" --all-containers --tail=15 --previous 2>/dev/null
  done
  printf '\n=== requests received by Amperity\n'
  tail -n 40 "$work"/requests*.jsonl
  printf '\n=== node\n'
  tail -n 8 "$work"/log/{helm,node,kubelet,containerd,kube-controller-manager}.log
}

work=$(mktemp -d "${TMPDIR:-/tmp}/e2e.XXXXXX")
finish() {
  local status=$?
  trap - EXIT
  set +e
  if [ "$status" -ne 0 ]; then
    printf 'e2e: failed in "%s" (line %s)\n' "$current_step" "${failed_line-?}" >&2
    print_logs >&2
    if [ "${KEEP:-0}" != 0 ]; then
      printf 'KEEP: the cluster is kept. To use it: bash %s in %s kubectl get all -A\n      To stop it: bash %s stop %s && rm -rf %s\n' \
        $NODE "$work" $NODE "$work" "$work" >&2
      exit "$status"
    fi
  fi
  bash $NODE stop "$work"
  rm -rf -- "$work"
  exit "$status"
}
trap finish EXIT
trap 'failed_line=$LINENO' ERR
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# --- The cluster -----------------------------------------------------------------------------------------------------

step 'start of a node'
programs=$(sh tests/lab/node/build.sh)
start_node "$archive"
start_amperity amperity-sim 8080 --record "$work/requests.jsonl" --dns amperity.lab
start_amperity amperity-sim-tls 8443 --record "$work/requests-tls.jsonl" --tls amperity.lab --ca "$work/amperity-ca.crt"
k get nodes -o wide --no-headers
passed 'kubelet, containerd and a control plane are running'

# Enforces the strictest Pod Security Standard.
k create namespace $NAMESPACE
k label namespace $NAMESPACE pod-security.kubernetes.io/enforce=restricted
k apply -f examples/secret.yaml

step 'helm install'
helm_values install $CHART
k wait pods -n $NAMESPACE -l app.kubernetes.io/instance=$RELEASE --for=condition=Ready --timeout=60s
until_true 20 'one of the pods is the leader' leader_is_pod
[ "$(pods -o name | wc -l)" -eq 2 ] || fail 'the number of pods is not two'
pods -o 'jsonpath={range .items[*]}{.metadata.name}{"  "}{.status.phase}{"  "}{.status.containerStatuses[0].image}{"\n"}{end}'
in_node helm test $RELEASE --namespace $NAMESPACE --timeout 60s >/dev/null || fail 'helm test failed'
passed 'the image runs under Pod Security "restricted", both replicas are Ready, one is the leader, helm test passes'

step 'the samples'
k apply -f examples/stop.yaml -f examples/stop-ended.yaml -f examples/stop-failing.yaml -f examples/stop-unknown.yaml \
  -f examples/stop-suspended.yaml
k wait workflowrunstop/stop-nightly --for=condition=Ready --timeout=60s
finishes_as stop-nightly 'True RunStopped'
finishes_as stop-ended 'True RunEndedOtherwise'
finishes_as stop-failing 'True RunEndedOtherwise'
finishes_as stop-unknown 'False RunNotFound'
once wf-demo-1 wf-demo-2 wf-demo-3 wf-demo-4
[ "$(posts wf-demo-6)" -eq 0 ] || fail 'a suspended stop was sent'
k patch workflowrunstop stop-suspended --type=merge -p '{"spec":{"suspend":false}}'
finishes_as stop-suspended 'True RunStopped'
once wf-demo-6
k get workflowrunstops
# Events are written in the background, so they may appear after the status.
until_true 20 'events of stop-nightly' has_events stop-nightly 'StopAccepted RunStopped'
until_true 20 'events of stop-unknown' has_events stop-unknown 'RunNotFound'
passed 'each sample has its result, one POST and its events'

step 'client credentials'
k apply -f examples/client-credentials.yaml
finishes_as stop-with-client 'True RunStopped'
once wf-demo-8
grep -q '"kind":"token"' "$work/requests.jsonl" || fail 'no token was requested'
passed 'the operator fetched a token and stopped the run once'

# --- Crashes and drains ----------------------------------------------------------------------------------------------

step 'SIGKILL of the leader during a request'
killed=$(leader)
uid=$(k get pod -n $NAMESPACE "$killed" -o 'jsonpath={.metadata.uid}')
apply_stop in-flight-killed wf-slow-1
until_true 15 'the stop request was received' was_received wf-slow-1
# Kills the operator in the pod's cgroup, not the pause process.
in_node bash -c 'for p in /proc/[0-9]*; do
  if grep -q "$1" "$p/cgroup" && [ "$(cat "$p/comm")" != pause ]; then kill -KILL "${p#/proc/}"; echo "killed ${p#/proc/}"; fi
done 2>/dev/null' sh "$uid" | grep killed || fail 'the leader was not found'
k delete pod -n $NAMESPACE "$killed" --grace-period=0 --force 2>/dev/null
until_true 40 'another pod is the leader' leader_changed "$killed"
finishes_as in-flight-killed 'True RunStopped'
once wf-slow-1
apply_stop after-the-kill wf-quick-1
finishes_as after-the-kill 'True RunStopped'
once wf-quick-1
passed 'the standby took over, confirmed the request by a read, and sent nothing twice'

step 'helm upgrade with other values and a changed CRD'
cp -r $CHART "$work/chart"
sed -i 's/description: The ID of the workflow run to stop$/description: The workflow run that is to be stopped/' "$work/chart/files/crd.yaml"
apply_stop across-the-upgrade wf-slow-2
until_true 15 'the stop request was received' was_received wf-slow-2
extra=(--set requestsPerSecond=7 --set logFormat=text)
helm_values upgrade "$work/chart"
k get crd workflowrunstops.workflow.amperity.com -o yaml | grep -q 'The workflow run that is to be stopped' ||
  fail 'the CRD was not upgraded'
finishes_as across-the-upgrade 'True RunStopped'
once wf-slow-2
apply_stop after-the-upgrade wf-quick-2
finishes_as after-the-upgrade 'True RunStopped'
once wf-quick-2
passed 'CRD and pods were upgraded, the request in flight succeeded, nothing was sent twice'

step 'drain of the node'
apply_stop across-the-drain wf-slow-3
until_true 15 'the stop request was received' was_received wf-slow-3
held=$(k drain n1 --ignore-daemonsets --timeout=10s 2>&1) && fail 'the PodDisruptionBudget allowed both evictions'
grep -q 'disruption budget' <<<"$held" || fail "the drain failed for another reason: $held"
[ "$(pods --no-headers | grep -c ' Running ')" -ge 1 ] || fail 'no pod is running'
finishes_as across-the-drain 'True RunStopped'
once wf-slow-3
passed 'a drain keeps one pod running, because there is no other node'

step 'SIGTERM of the last pod during a request'
until_true 40 'the remaining pod is the leader' leader_is_pod
apply_stop across-the-end wf-slow-4
until_true 15 'the stop request was received' was_received wf-slow-4
# Deletes the pods instead of evicting them. They still get SIGTERM and their grace period.
k drain n1 --ignore-daemonsets --disable-eviction --timeout=60s >/dev/null 2>&1
[ "$(pods --no-headers | grep -c ' Running ' || true)" -eq 0 ] || fail 'a pod is still running'
accepted=$(condition across-the-end StopAccepted)
[ "$accepted" = 'True StopAccepted' ] || fail "the response was not recorded: \"$accepted\""
k uncordon n1
finishes_as across-the-end 'True RunStopped'
once wf-slow-4
passed 'after SIGTERM the response was recorded before the pod exited; the next pod continued'

# --- Uninstall and reinstall -----------------------------------------------------------------------------------------

step 'helm uninstall during a request'
apply_stop across-the-uninstall wf-slow-5
until_true 15 'the stop request was received' was_received wf-slow-5
in_node helm uninstall $RELEASE --namespace $NAMESPACE --wait --timeout 90s >>"$work/log/helm.log" 2>&1
until_true 60 'the pods are deleted' no_pods
k get crd workflowrunstops.workflow.amperity.com >/dev/null || fail 'the CRD was deleted'
finished >"$work/before"
[ "$(wc -l <"$work/before")" -ge 11 ] || fail 'resources were deleted'
printf '    condition StopAccepted of the request in flight: %s\n' "$(condition across-the-uninstall StopAccepted)"
sent=$(all_posts)
passed "CRD and resources are kept, $(wc -l <"$work/before") of them finished"

step 'helm install again'
extra=()
helm_values install $CHART
until_true 40 'one of the pods is the leader' leader_is_pod
apply_stop after-the-return wf-quick-3
finishes_as after-the-return 'True RunStopped'
finishes_as across-the-uninstall 'True RunStopped'
[ "$(all_posts)" -eq $((sent + 1)) ] || fail "$(($(all_posts) - sent)) stop requests instead of one"
finished >"$work/after"
touched=$(grep -vxFf "$work/after" "$work/before") && fail "a finished resource was changed: $touched"
passed 'finished resources were not changed, the request in flight finished, new stops are processed'

# --- Other configurations --------------------------------------------------------------------------------------------

step 'watchNamespaces'
k create namespace watched
k create namespace other
for namespace in watched other; do k apply -n $namespace -f examples/secret.yaml; done
extra=(--set 'watchNamespaces={watched}')
helm_values upgrade $CHART
until_true 40 'one of the pods is the leader' leader_is_pod
apply_stop left-alone wf-quick-4 other
apply_stop here wf-quick-5 watched
finishes_as here 'True RunStopped' watched
once wf-quick-5
[ "$(posts wf-quick-4)" -eq 0 ] && [ -z "$(k get workflowrunstop left-alone -n other -o 'jsonpath={.status.conditions}')" ] ||
  fail 'a stop in another namespace was processed'
account=$(pods -o 'jsonpath={.items[0].spec.serviceAccountName}')
k auth can-i get secrets -n other --as "system:serviceaccount:$NAMESPACE:$account" >/dev/null && fail 'the operator can read Secrets of other namespaces'
k auth can-i get secrets/amperity -n watched --as "system:serviceaccount:$NAMESPACE:$account" >/dev/null ||
  fail 'the operator cannot read the Secret that it needs'
passed 'stops in the watched namespace are processed; the other namespace is not accessible'

step 'a certificate of a private CA'
extra=(--set "amperity.baseUrl=$TLS_API")
helm_values upgrade $CHART
until_true 40 'one of the pods is the leader' leader_is_pod
apply_stop private-ca wf-quick-6
until_true 20 'the certificate is rejected' is_unreachable private-ca
[ "$(posts wf-quick-6)" -eq 0 ] || fail 'a request was sent despite the untrusted certificate'
k create configmap amperity-ca -n $NAMESPACE --from-file=ca.crt="$work/amperity-ca.crt"
extra+=(--set caBundle.configMap=amperity-ca)
helm_values upgrade $CHART
finishes_as private-ca 'True RunStopped'
once wf-quick-6
passed 'without the CA bundle nothing is sent, with it the run is stopped'

printf '\ne2e: passed, %s s\n' "$((SECONDS - started))"
