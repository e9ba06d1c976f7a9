#!/bin/sh
# Owns a real Prometheus: prints the folder of prometheus and promtool, and builds them if missing.
# Never prints anything else on stdout, and never leaves a partly built program.
#
# They are built once, from the Go module pinned in ../go, and kept in the user's cache folder.
set -eu

here=${0%/*}
[ "$here" != "$0" ] || here=.
here=$(cd -- "$here" && pwd)
what=prometheus
modules=$here/../go
. "$modules/build.sh"

use_go "$modules/prometheus" 'prometheus for the tests: install it, or set PROMETHEUS to a folder that has prometheus and promtool'
cache prometheus "$modules"/prometheus/go.* "$here/build.sh"

if [ ! -x "$folder/prometheus" ] || [ ! -x "$folder/promtool" ]; then
  open_cache
  # Without service discovery: the tests use static targets.
  build prometheus "$modules/prometheus" github.com/prometheus/prometheus/cmd/prometheus '1 to 2 minutes' -tags remove_all_sd
  build promtool "$modules/prometheus" github.com/prometheus/prometheus/cmd/promtool 'less than a minute' -tags remove_all_sd
fi
printf '%s\n' "$folder"
