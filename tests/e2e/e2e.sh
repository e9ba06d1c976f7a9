#!/usr/bin/env bash
# Owns what can only be seen in a real cluster: the image, the chart, and the operator in pods, from the first install to
# the last uninstall. Everything runs on this machine, in a node of private namespaces (tests/lab/node).
# Never reaches a cluster, a registry or an Amperity but its own, and leaves nothing running however it ends.
#
#   e2e.sh IMAGE_ARCHIVE IMAGE AMPERITY_SIM     `make e2e` builds all three and calls it
#
# KEEP=1 leaves the cluster of a failed run running and says how to look into it. E2E_REQUIRED=1 turns "left out" into a failure.
# E: the trap for errors holds in functions as well.
set -eEuo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."

[ "$#" -eq 3 ] || { echo 'usage: e2e.sh IMAGE_ARCHIVE IMAGE AMPERITY_SIM' >&2; exit 2; }
archive=$1 image=$2 sim=$3

NODE=tests/lab/node/node.sh
CHART=charts/workflow-run-stop-operator
RELEASE=stopper NAMESPACE=operator-system
API=http://amperity.lab:8080/api TLS_API=https://amperity.lab:8443/api

if ! why=$(bash $NODE check 2>&1); then
  printf 'e2e: LEFT OUT, nothing was tested: %s\n' "$why" >&2
  [ -z "${E2E_REQUIRED-}" ] || exit 1
  exit 0
fi

# --- What the steps are made of --------------------------------------------------------------------------------------

begun=$SECONDS step_begun=$SECONDS
now_doing='the start'

# Says what the step before has proved, and what comes now.
step() {
  now_doing=$1
  step_begun=$SECONDS
  printf '\n--- %s\n' "$1"
}
proved() { printf '    proved: %s (%s s)\n' "$1" "$((SECONDS - step_begun))"; }

fail() {
  printf 'e2e: FAILED in "%s": %s\n' "$now_doing" "$*" >&2
  exit 1
}

within() { bash $NODE in "$work" "$@"; }
k() { within kubectl "$@"; }

# Asks until it is so: seconds, what is waited for, the question.
until_true() {
  local patience=$1 what=$2 deadline=$((SECONDS + $1))
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || fail "after $patience s still not: $what"
    sleep 0.3
  done
}

# Whether these events, in this order, and no others tell of a stop.
told() { [ "$(k get events --field-selector "involvedObject.name=$1" -o 'jsonpath={.items[*].reason}')" = "$2" ]; }

# How many stop requests have arrived at Amperity for a run.
posts() { cat "$work"/requests*.jsonl | grep '"kind":"stop"' | grep -c "\"run\":\"$1\"" || true; }
all_posts() { cat "$work"/requests*.jsonl | grep -c '"kind":"stop"' || true; }
has_arrived() { [ "$(posts "$1")" -ge 1 ]; }
once() {
  local run
  for run in "$@"; do
    [ "$(posts "$run")" -eq 1 ] || fail "$(posts "$run") stop requests instead of one for $run"
  done
}

# A stop of that name for that run, with the token of examples/secret.yaml: name, run, namespace, further lines of the spec.
apply_stop() {
  k apply -f - <<END
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

# The value of a condition as "True RunStopped": name, condition, namespace.
condition() {
  k get workflowrunstop "$1" -n "${3:-default}" \
    -o "jsonpath={range .status.conditions[?(@.type==\"$2\")]}{.status} {.reason}{end}"
}
ends_as() {
  k wait "workflowrunstop/$1" -n "${3:-default}" --for='jsonpath={.status.completionTime}' --timeout=90s
  local ready
  ready=$(condition "$1" Ready "${3:-default}")
  [ "$ready" = "$2" ] || fail "$1 ended as \"$ready\" instead of \"$2\""
}

pods() { k get pods -n $NAMESPACE -l app.kubernetes.io/instance=$RELEASE "$@"; }
holder() { k get lease -n $NAMESPACE -o 'jsonpath={.items[0].spec.holderIdentity}'; }
leader() { local id; id=$(holder) && [ -n "$id" ] && printf '%s' "${id%_*}"; }
other_leads() { local now; now=$(leader) && [ "$now" != "$1" ]; }
leads_among_pods() { k get pod -n $NAMESPACE "$(leader)"; }

is_unreachable() { [ "$(condition "$1" Ready)" = 'False Unreachable' ]; }
no_pods() { [ -z "$(pods -o name)" ]; }
# Each finished resource with its version, which changes with every write.
finished() {
  k get workflowrunstops -A \
    -o 'jsonpath={range .items[?(@.status.completionTime)]}{.metadata.uid} {.metadata.name} {.metadata.resourceVersion}{"\n"}{end}'
}

# Installs or upgrades: two replicas of our image, our Amperity, short waits, and what a step wants more.
more=()
helm_values() {
  within helm "$1" $RELEASE "$2" --namespace $NAMESPACE --wait --timeout 90s \
    --set "image.repository=${image%:*}" --set-string "image.tag=${image##*:}" \
    --set "amperity.baseUrl=$API" --set requestTimeout=10s --set settleTime=5s "${more[@]}" >>"$work/log/helm.log"
}

logs_of_everything() {
  printf '\n=== resources\n'
  k get workflowrunstops,pods,leases -A -o wide
  k get events -A --sort-by=.lastTimestamp | tail -n 25
  printf '\n=== the operator\n'
  local pod
  for pod in $(pods -o name); do
    printf -- '--- %s\n' "$pod"
    k logs -n $NAMESPACE "$pod" --all-containers --tail=40
    k logs -n $NAMESPACE "$pod" --all-containers --tail=15 --previous 2>/dev/null
  done
  printf '\n=== what arrived at Amperity\n'
  tail -n 40 "$work"/requests*.jsonl
  printf '\n=== the node\n'
  tail -n 8 "$work"/log/{helm,node,kubelet,containerd,kube-controller-manager}.log
}

work=$(mktemp -d "${TMPDIR:-/tmp}/e2e.XXXXXX")
finish() {
  local status=$?
  trap - EXIT
  set +e
  if [ "$status" -ne 0 ]; then
    printf 'e2e: not well, in "%s" (line %s)\n' "$now_doing" "${failed_line-?}" >&2
    logs_of_everything >&2
    if [ "${KEEP:-0}" != 0 ]; then
      printf 'KEEP: the cluster runs on. Look: bash %s in %s kubectl get all -A\n      End it: bash %s stop %s && rm -rf %s\n' \
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

step 'a real node starts'
programs=$(sh tests/lab/node/build.sh)
mkdir -p "$work/images"
cp "$archive" "$work/images/"
bash $NODE start "$work" "$programs"
within "$sim" --listen 10.99.0.1:8080 --record "$work/requests.jsonl" --dns amperity.lab >"$work/log/amperity-sim.log" 2>&1 &
within "$sim" --listen 10.99.0.1:8443 --record "$work/requests-tls.jsonl" \
  --tls amperity.lab --ca "$work/amperity-ca.crt" >"$work/log/amperity-sim-tls.log" 2>&1 &
until_true 10 'the simulated Amperity serves' grep -q serving "$work/log/amperity-sim.log" "$work/log/amperity-sim-tls.log"
k get nodes -o wide --no-headers
proved 'kubelet, containerd and a control plane run here'

# The strictest of the Pod Security Standards, enforced: what it refuses does not start.
k create namespace $NAMESPACE
k label namespace $NAMESPACE pod-security.kubernetes.io/enforce=restricted
k apply -f examples/secret.yaml

step 'helm install'
helm_values install $CHART
k wait pods -n $NAMESPACE -l app.kubernetes.io/instance=$RELEASE --for=condition=Ready --timeout=60s
until_true 20 'one of the pods leads' leads_among_pods
[ "$(pods -o name | wc -l)" -eq 2 ] || fail 'there are not two pods'
pods -o 'jsonpath={range .items[*]}{.metadata.name}{"  "}{.status.phase}{"  "}{.status.containerStatuses[0].image}{"\n"}{end}'
within helm test $RELEASE --namespace $NAMESPACE --timeout 60s >/dev/null || fail 'helm test failed'
proved 'the image runs under Pod Security "restricted", both replicas are Ready, one leads, helm test passes'

step 'the samples'
k apply -f examples/stop.yaml -f examples/stop-ended.yaml -f examples/stop-failing.yaml -f examples/stop-unknown.yaml \
  -f examples/stop-suspended.yaml
k wait workflowrunstop/stop-nightly --for=condition=Ready --timeout=60s
ends_as stop-nightly 'True RunStopped'
ends_as stop-ended 'True RunEndedOtherwise'
ends_as stop-failing 'True RunEndedOtherwise'
ends_as stop-unknown 'False RunNotFound'
once wf-demo-1 wf-demo-2 wf-demo-3 wf-demo-4
[ "$(posts wf-demo-6)" -eq 0 ] || fail 'a suspended stop was sent'
k patch workflowrunstop stop-suspended --type=merge -p '{"spec":{"suspend":false}}'
ends_as stop-suspended 'True RunStopped'
once wf-demo-6
k get workflowrunstops
# They are written beside the status, not before it.
until_true 20 'the story of stop-nightly stands in its events' told stop-nightly 'StopAccepted RunStopped'
until_true 20 'the story of stop-unknown stands in its events' told stop-unknown 'RunNotFound'
proved 'each sample ends as it says, with one POST, and the events tell it'

step 'client credentials'
k apply -f examples/client-credentials.yaml
ends_as stop-with-client 'True RunStopped'
once wf-demo-8
grep -q '"kind":"token"' "$work/requests.jsonl" || fail 'no token was asked for'
proved 'the operator fetched a token by itself and stopped the run once'

# --- Crashes and drains ----------------------------------------------------------------------------------------------

step 'the leader is killed while its request is under way'
killed=$(leader)
uid=$(k get pod -n $NAMESPACE "$killed" -o 'jsonpath={.metadata.uid}')
apply_stop in-flight-killed wf-slow-1
until_true 15 'the stop request arrives' has_arrived wf-slow-1
# Of the processes in the pod's cgroup: the operator, not the one that holds the pod's namespaces. No signal that it could catch.
within bash -c 'for p in /proc/[0-9]*; do
  if grep -q "$1" "$p/cgroup" && [ "$(cat "$p/comm")" != pause ]; then kill -KILL "${p#/proc/}"; echo "killed ${p#/proc/}"; fi
done 2>/dev/null' sh "$uid" | grep killed || fail 'the leader was not found'
k delete pod -n $NAMESPACE "$killed" --grace-period=0 --force 2>/dev/null
until_true 40 'another pod leads' other_leads "$killed"
ends_as in-flight-killed 'True RunStopped'
once wf-slow-1
apply_stop after-the-kill wf-quick-1
ends_as after-the-kill 'True RunStopped'
once wf-quick-1
proved 'the other one took over, found out what became of the request, and sent nothing twice'

step 'helm upgrade, with other values and another CRD'
cp -r $CHART "$work/chart"
sed -i 's/description: The workflow run to stop$/description: The workflow run that is to be stopped/' "$work/chart/files/crd.yaml"
apply_stop across-the-upgrade wf-slow-2
until_true 15 'the stop request arrives' has_arrived wf-slow-2
more=(--set requestsPerSecond=7 --set logFormat=text)
helm_values upgrade "$work/chart"
k get crd workflowrunstops.workflow.amperity.com -o yaml | grep -q 'The workflow run that is to be stopped' ||
  fail 'the cluster has the old CRD still'
ends_as across-the-upgrade 'True RunStopped'
once wf-slow-2
apply_stop after-the-upgrade wf-quick-2
ends_as after-the-upgrade 'True RunStopped'
once wf-quick-2
proved 'CRD and pods are new, what was under way ended well, nothing was sent twice'

step 'the node is drained'
apply_stop across-the-drain wf-slow-3
until_true 15 'the stop request arrives' has_arrived wf-slow-3
held=$(k drain n1 --ignore-daemonsets --timeout=10s 2>&1) && fail 'the budget for disruptions let both pods go'
grep -q 'disruption budget' <<<"$held" || fail "the drain failed for another reason: $held"
[ "$(pods --no-headers | grep -c ' Running ')" -ge 1 ] || fail 'no pod runs'
ends_as across-the-drain 'True RunStopped'
once wf-slow-3
proved 'a drain leaves one pod at work, for there is no other node'

step 'the last pod ends while its request is under way'
until_true 40 'the pod that is left leads' leads_among_pods
apply_stop across-the-end wf-slow-4
until_true 15 'the stop request arrives' has_arrived wf-slow-4
# Deletes where evictions are refused: the pods get SIGTERM and their time all the same.
k drain n1 --ignore-daemonsets --disable-eviction --timeout=60s >/dev/null 2>&1
[ "$(pods --no-headers | grep -c ' Running ' || true)" -eq 0 ] || fail 'a pod still runs'
accepted=$(condition across-the-end StopAccepted)
[ "$accepted" = 'True StopAccepted' ] || fail "the answer was not recorded: \"$accepted\""
k uncordon n1
ends_as across-the-end 'True RunStopped'
once wf-slow-4
proved 'after SIGTERM the answer was waited for and recorded before the pod ended; the next one went on'

# --- Uninstalled and back --------------------------------------------------------------------------------------------

step 'helm uninstall, while a request is under way'
apply_stop across-the-uninstall wf-slow-5
until_true 15 'the stop request arrives' has_arrived wf-slow-5
within helm uninstall $RELEASE --namespace $NAMESPACE --wait --timeout 90s >>"$work/log/helm.log" 2>&1
until_true 60 'the pods are gone' no_pods
k get crd workflowrunstops.workflow.amperity.com >/dev/null || fail 'the CRD is gone'
finished >"$work/before"
[ "$(wc -l <"$work/before")" -ge 11 ] || fail 'resources are gone'
printf '    what the status says of that request: %s\n' "$(condition across-the-uninstall StopAccepted)"
sent=$(all_posts)
proved "CRD and resources are kept, $(wc -l <"$work/before") of them finished"

step 'helm install again'
more=()
helm_values install $CHART
until_true 40 'one of the pods leads' leads_among_pods
apply_stop after-the-return wf-quick-3
ends_as after-the-return 'True RunStopped'
ends_as across-the-uninstall 'True RunStopped'
[ "$(all_posts)" -eq $((sent + 1)) ] || fail "$(($(all_posts) - sent)) stop requests instead of one"
finished >"$work/after"
touched=$(grep -vxFf "$work/after" "$work/before") && fail "a finished resource was touched: $touched"
proved 'what had finished was left alone, what was under way came to its end, new work is done'

# --- Other ways to run it --------------------------------------------------------------------------------------------

step 'only some namespaces are watched'
k create namespace watched
k create namespace other
for namespace in watched other; do k apply -n $namespace -f examples/secret.yaml; done
more=(--set 'watchNamespaces={watched}')
helm_values upgrade $CHART
until_true 40 'one of the pods leads' leads_among_pods
apply_stop left-alone wf-quick-4 other
apply_stop here wf-quick-5 watched
ends_as here 'True RunStopped' watched
once wf-quick-5
[ "$(posts wf-quick-4)" -eq 0 ] && [ -z "$(k get workflowrunstop left-alone -n other -o 'jsonpath={.status.conditions}')" ] ||
  fail 'another namespace was looked at'
account=$(pods -o 'jsonpath={.items[0].spec.serviceAccountName}')
k auth can-i get secrets -n other --as "system:serviceaccount:$NAMESPACE:$account" >/dev/null && fail 'it may read the Secrets of all'
k auth can-i get secrets/amperity -n watched --as "system:serviceaccount:$NAMESPACE:$account" >/dev/null ||
  fail 'it may not read what it needs'
proved 'it works in the named namespace, and neither looks into the other one nor may'

step 'an Amperity whose certificate is by a private authority'
more=(--set "amperity.baseUrl=$TLS_API")
helm_values upgrade $CHART
until_true 40 'one of the pods leads' leads_among_pods
apply_stop trusts-nobody wf-quick-6
until_true 20 'the certificate is refused' is_unreachable trusts-nobody
[ "$(posts wf-quick-6)" -eq 0 ] || fail 'it was sent without trust'
k create configmap amperity-ca -n $NAMESPACE --from-file=ca.crt="$work/amperity-ca.crt"
more+=(--set caBundle.configMap=amperity-ca)
helm_values upgrade $CHART
ends_as trusts-nobody 'True RunStopped'
once wf-quick-6
proved 'without it nothing is sent, with it the stop goes through'

printf '\ne2e: all is well, %s s\n' "$((SECONDS - begun))"
