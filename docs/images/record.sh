#!/usr/bin/env bash
# Owns docs/images/session.svg: records a real session with kubectl, the plugin and the operator, which `make demo` runs against a
# real API server and a simulated Amperity.
# Never records anything but the output of these programs. The names, ages and times differ each time.
#
# Needs: cargo install term-transcript-cli --version 0.5.0 --locked --features portable-pty
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."

kubectl=$(sh tests/lab/control-plane/build.sh kubectl)
log=$(mktemp)
make demo KEEP=1 >"$log" &
demo=$!
trap 'kill -INT $(pgrep -P "$demo") 2>/dev/null; wait "$demo" || :; rm -f -- "$log"' EXIT
until kubeconfig=$(sed -n 's/^ *export KUBECONFIG=//p' "$log") && [ -n "$kubeconfig" ]; do
  kill -0 "$demo"
  sleep 0.2
done

export KUBECONFIG=$kubeconfig PATH="$kubectl:$PWD/${CARGO_TARGET_DIR:-target}/debug:$PATH"
term-transcript exec --shell bash --args=--norc --pty 40x110 --init-timeout 40s --io-timeout 1s \
  --pure-svg --window 'kubectl' --palette gjm8 --width 1000 --hard-wrap 110 --out docs/images/session.svg \
  'kubectl apply -f examples/stop-another.yaml' \
  "kubectl wait wrs/stop-another --for=jsonpath='{.status.result}' --timeout=1m" \
  'kubectl get wrs stop-another' \
  'kubectl stop-run wf-demo-6 --tenant acme2-max --credentials amperity --wait'
