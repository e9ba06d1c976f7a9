#!/usr/bin/env bash
# Owns docs/benchmarks.md: it puts the sections of a run of `make bench` together, with the machine and the versions.
# Never measures, and never changes a figure.
#
#   document.sh FOLDER
set -euo pipefail
out=$(cd -- "$1" && pwd)
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | sort -u | head -n 1)
memory=$(awk '/^MemTotal:/ { printf "%.0f GiB", $2 / 1048576 }' /proc/meminfo)
kubernetes=$("$(sh tests/lab/control-plane/build.sh)/kube-apiserver" --version | cut -d" " -f2)
kopf=$(sed -n 's/^kopf==//p' benches/compare/requirements.txt)

{
  cat <<EOF
# Benchmarks

Written by \`make bench\` on $(date -u +%F), commit $(git rev-parse --short HEAD). It runs for about a quarter of an hour and overwrites this
page. Timings vary from machine to machine, and from run to run: compare the ratios.

- Machine: $(nproc) cores, ${cpu:-unknown processor}, $memory, Linux $(uname -r | cut -d- -f1); everything runs on it, the API server included.
- Versions: operator $(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml), release build with $(rustc --version | cut -d' ' -f1,2), Kubernetes $kubernetes, Kopf $kopf.

EOF
  cat -- "$out/compare.md"
  [ ! -e "$out/job.md" ] || { echo && cat -- "$out/job.md"; }
  echo && cat -- "$out/scale.md"
} >"$out/benchmarks.md"
cp -- "$out/benchmarks.md" docs/benchmarks.md
cp -- "$out/growth.svg" docs/images/growth.svg
echo 'bench: wrote docs/benchmarks.md and docs/images/growth.svg'
