#!/usr/bin/env bash
# Owns the comparison of the operator with a Kubernetes Job that runs curl, on one node: the time from `kubectl apply` to the
# arrival of the request, and memory.
# Never reaches another cluster, a registry or the real Amperity. Stops all its processes, whatever the result.
#
#   job.sh IMAGE_ARCHIVE IMAGE AMPERITY_SIM     `make bench-job` builds all three and runs it
#
# JOBS=5 chooses the number of Jobs, and of stops; SMALL=1 is one of each. BENCH_OUT names a folder for the result, job.md.
set -eEuo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."

[ "$#" -eq 3 ] || { echo 'usage: job.sh IMAGE_ARCHIVE IMAGE AMPERITY_SIM' >&2; exit 2; }
archive=$1 image=$2 sim=$3
jobs=${JOBS:-5}
[ "${SMALL:-0}" = 0 ] || jobs=1

. tests/lab/node/cluster.sh

fail() {
  printf 'job: %s\n' "$*" >&2
  exit 1
}

work=$(mktemp -d "${TMPDIR:-/tmp}/job.XXXXXX")
finish() {
  local status=$?
  trap - EXIT
  [ "$status" -eq 0 ] || { k logs job/job; tail -n 5 "$work"/log/{kubectl,helm,node,kubelet}.log; } >&2 || true
  bash $NODE stop "$work"
  rm -rf -- "$work"
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Writes the archive of an image with this machine's curl and its libraries.
archive_of_curl() {
  local curl machine file
  curl=$(command -v curl)
  machine=$(uname -m | sed 's/x86_64/amd64/;s/aarch64/arm64/')
  for file in "$curl" $(ldd "$curl" | grep -o '/[^ ]*'); do
    install -D -m 755 -- "$file" "$work/curl$file"
  done
  bash image/oci-archive.sh "$1" localhost/curl:1 "linux/$machine" "$work/curl" \
    '{"User":"65532:65532","Entrypoint":["'"$curl"'"]}' 2>/dev/null
}

# Prints a Job that stops a run with the token of examples/secret.yaml: name, run.
job_manifest() {
  cat <<END
apiVersion: batch/v1
kind: Job
metadata: {name: $1}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers:
        - name: curl
          image: localhost/curl:1
          args:
            - -sSf
            - -XPOST
            - "-Hauthorization: Bearer \$(TOKEN)"
            - "-Hamperity-tenant: acme2-max"
            - "-Hapi-version: 2024-04-01"
            - $API/workflow/runs/$2/stop
          env: [{name: TOKEN, valueFrom: {secretKeyRef: {name: amperity, key: token}}}]
END
}

# Applies the manifest on stdin. Sets begun to the time before, and took to the time that kubectl took, in µs.
apply() {
  in_node bash -c 'echo "${EPOCHREALTIME/[.,]/}"; kubectl apply -f - >&2 && echo "${EPOCHREALTIME/[.,]/}"' \
    >"$work/times" 2>>"$work/log/kubectl.log"
  { read -r begun && read -r took; } <"$work/times"
  took=$((took - begun))
}

# Prints the time from begun to the arrival of the request for a run, in µs.
time_to_request() {
  local at
  until_true 60 "the request for $1" was_received "$1"
  at=$(sed -n '/"kind":"stop"/{/"run":"'"$1"'"/s/.*"at":"\([^"]*\)".*/\1/p}' "$work/requests.jsonl")
  at=$(date -d "$at" +%s%6N)
  echo $((at - begun))
}

# Prints the highest memory of the Job's pod, in bytes, once its cgroup is gone. No other pod is without resource requests.
memory_of_job() {
  local deadline=$((SECONDS + 60)) highest=0 current files
  until files=("$cgroup"/besteffort/pod*/"$memory_file") && [ -e "${files[0]}" ]; do
    [ "$SECONDS" -lt "$deadline" ] || fail 'the pod of the Job did not start'
    sleep 0.05
  done
  while { read -r current <"${files[0]}"; } 2>/dev/null; do
    [ "$current" -le "$highest" ] || highest=$current
    [ "$SECONDS" -lt "$deadline" ] || fail 'the pod of the Job did not end'
    sleep 0.05
  done
  echo "$highest"
}

# Each measures one request: name, run. Appends to files: time to the request, time of kubectl, and memory.
measure_job() {
  apply < <(job_manifest "$1" "$2")
  memory_of_job >>"$work/$1.memory"
  time_to_request "$2" >>"$work/$1.time"
  echo "$took" >>"$work/$1.kubectl"
  k wait "job/$1" --for=condition=Complete --timeout=60s >/dev/null
  k delete "job/$1" >/dev/null
}
measure_stop() {
  apply < <(stop_manifest "$1" "$2")
  time_to_request "$2" >>"$work/$1.time"
  echo "$took" >>"$work/$1.kubectl"
  cat "$cgroup"/*/"pod$leader_uid/$memory_file" >>"$work/$1.memory"
  k wait "workflowrunstop/$1" --for='jsonpath={.status.completionTime}' --timeout=60s >/dev/null
  k delete "workflowrunstop/$1" >/dev/null
}

# Prints the median of a file's numbers, divided by a number, with this many decimals: file, divisor, decimals.
median() {
  sort -n "$work/$1" | awk -v "by=$2" -v "decimals=$3" '{v[NR] = $1} END {printf "%." decimals "f", v[int((NR + 1) / 2)] / by}'
}

row() { printf '| %s | %s | %s |\n' "$1" "$(median "stop.$2" "$3" "$4")" "$(median "job.$2" "$3" "$4")"; }

result() {
  cat <<END
## The operator, and a Job that runs curl

A WorkflowRunStop and a Job with the same request are applied in turn to a one-node cluster that has all images, with the API
server and a simulated Amperity on the same machine: $jobs of each, after one that is not counted. Each figure is the median.
The time is from the start of \`kubectl apply\` to the arrival of the request. The memory is $memory_file of the
pod's cgroup: with the start of the container, without files that were in the page cache before. Each Job has such a pod; the
operator has one for all stops, and a second one as standby.

| figure | operator | Job |
| --- | ---: | ---: |
END
  row '`kubectl apply` → request received, ms' time 1000 0
  row 'of which `kubectl` itself took, ms' kubectl 1000 0
  row 'memory of the pod, MiB' memory 1048576 1
}

if ! programs=$(sh tests/lab/node/build.sh); then
  echo 'job: skipped, the programs of the node cannot be built'
  exit 0
fi
archive_of_curl "$work/curl.tar"
start_node "$archive" "$work/curl.tar"
start_amperity amperity-sim 8080 --record "$work/requests.jsonl" --dns amperity.lab
k create namespace $NAMESPACE >/dev/null
k apply -f examples/secret.yaml >/dev/null
helm_values install $CHART
until_true 40 'one of the pods is the leader' leader_is_pod

cgroup=/sys/fs/cgroup
[ -e $cgroup/cgroup.controllers ] || cgroup+=/memory
cgroup+=$(sed -n 's/^cgroupRoot: //p' "$work/conf/kubelet.yaml")/kubepods
leader_uid=$(k get pod -n $NAMESPACE "$(leader)" -o 'jsonpath={.metadata.uid}')
for memory_file in memory.peak memory.max_usage_in_bytes memory.current; do
  [ ! -e "$(echo "$cgroup"/*/"pod$leader_uid/$memory_file")" ] || break
done

measure_job job wf-quick-1
measure_stop stop wf-quick-2
rm "$work"/{job,stop}.*
for ((n = 2; n < 2 * jobs + 2; n += 2)); do
  measure_job job "wf-quick-$((n + 1))"
  measure_stop stop "wf-quick-$((n + 2))"
done
[ -z "${BENCH_OUT-}" ] || result >"$BENCH_OUT/job.md"
result
