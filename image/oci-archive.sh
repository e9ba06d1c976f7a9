#!/usr/bin/env bash
# Owns writing an OCI archive with one layer, which contains the files of one folder, without a container engine.
# Never depends on when or where it runs: the same files give the same bytes. Needs GNU tar, gzip and sha256sum.
#
#   oci-archive.sh ARCHIVE NAME:TAG PLATFORM ROOT CONFIG
#
# PLATFORM is linux/amd64 or linux/arm64. CONFIG is the image's config as JSON: User, Entrypoint, Labels.
# Docker, podman, skopeo and containerd can read the archive.
set -euo pipefail

[ "$#" -eq 5 ] || { echo 'usage: oci-archive.sh ARCHIVE NAME:TAG PLATFORM ROOT CONFIG' >&2; exit 2; }
archive=$1 name=$2 os=${3%/*} architecture=${3#*/} root=$4 config=$5
# The time of the commit if it is known, by the convention for reproducible builds.
epoch=${SOURCE_DATE_EPOCH:-0}
created=$(date -u -d "@$epoch" +%Y-%m-%dT%H:%M:%SZ)

layout=$(mktemp -d)
trap 'rm -rf -- "$layout"' EXIT
mkdir -p -- "$layout/blobs/sha256" "$(dirname -- "$archive")"

plain_tar() { tar --format=ustar --mode=u=rwX,go=rX --sort=name --mtime="@$epoch" --owner=0 --group=0 --numeric-owner -c "$@"; }

# Moves a file to the blobs, named by its hash; sets digest and size.
blob() {
  digest=$(sha256sum "$1" | cut -d ' ' -f 1)
  size=$(stat -c %s "$1")
  mv -- "$1" "$layout/blobs/sha256/$digest"
}

plain_tar -C "$root" . >"$layout/layer.tar"
diff_id=$(sha256sum "$layout/layer.tar" | cut -d ' ' -f 1)
gzip -n -9 <"$layout/layer.tar" >"$layout/layer"
rm -- "$layout/layer.tar"
blob "$layout/layer"
layer='{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:'$digest'","size":'$size'}'

printf '%s' '{"created":"'"$created"'","architecture":"'"$architecture"'","os":"'"$os"'","config":'"$config"',' \
  '"rootfs":{"type":"layers","diff_ids":["sha256:'"$diff_id"'"]},"history":[{"created":"'"$created"'"}]}' >"$layout/config"
blob "$layout/config"
printf '%s' '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",' \
  '"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:'"$digest"'","size":'"$size"'},' \
  '"layers":['"$layer"']}' >"$layout/manifest"
blob "$layout/manifest"
# The tag has two annotations: the one of the OCI specification, and the one that containerd reads.
printf '%s' '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[' \
  '{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:'"$digest"'","size":'"$size"',' \
  '"platform":{"architecture":"'"$architecture"'","os":"'"$os"'"},"annotations":{' \
  '"org.opencontainers.image.ref.name":"'"${name##*:}"'","io.containerd.image.name":"'"$name"'"}}]}' >"$layout/index.json"
printf '%s' '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"

plain_tar -C "$layout" . >"$archive.new"
mv -f -- "$archive.new" "$archive"
printf '%s: %s, sha256:%s, %s bytes\n' "$archive" "$name" "$digest" "$(stat -c %s "$archive")" >&2
