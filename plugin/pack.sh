#!/usr/bin/env bash
# Owns the package of the kubectl plugin for krew: an archive with the program and its licence, and krew's manifest.
# Never depends on time or machine: the same program gives the same bytes. Needs GNU tar, gzip and sha256sum.
#
#   pack.sh FOLDER PROGRAM VERSION ARCH URI
#
# krew will download the archive from URI.
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

[ "$#" -eq 5 ] || { echo 'usage: pack.sh FOLDER PROGRAM VERSION ARCH URI' >&2; exit 2; }
folder=$1 program=$2 version=$3 arch=$4 uri=$5
archive=$folder/kubectl-stop_run-$version-linux-$arch.tar.gz manifest=$folder/stop-run.yaml

content=$(mktemp -d)
trap 'rm -rf -- "$content"' EXIT
install -m 755 -- "$program" "$content/kubectl-stop_run"
install -m 644 -- "$here/../LICENSE" "$content/LICENSE"

mkdir -p -- "$folder"
tar --format=ustar --sort=name --mtime="@${SOURCE_DATE_EPOCH:-0}" --owner=0 --group=0 --numeric-owner \
  -C "$content" -c kubectl-stop_run LICENSE | gzip -n -9 >"$archive.new"
mv -f -- "$archive.new" "$archive"
sha256=$(sha256sum "$archive" | cut -d ' ' -f 1)
# Escapes what sed would interpret.
escaped=$(printf '%s' "$uri" | sed 's/[&|\\]/\\&/g')
sed -e '/^#/d' -e "s|@VERSION@|$version|; s|@ARCH@|$arch|; s|@SHA256@|$sha256|; s|@URI@|$escaped|" \
  "$here/stop-run.yaml" >"$manifest.new"
mv -f -- "$manifest.new" "$manifest"
printf '%s\n%s: sha256:%s, to be published at %s\n' "$archive" "$manifest" "$sha256" "$uri" >&2
