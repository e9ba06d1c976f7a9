#!/usr/bin/env bash
# Owns building the image as an OCI archive without a container engine: `make image` calls it.
# Never adds anything to the image except the operator and the certificates of the public authorities.
#
#   build.sh ARCHIVE NAME:TAG [amd64|arm64]
#
# The operator is linked statically (static.sh), since the image contains no libraries.
# CA_CERTIFICATES names a PEM file to use instead of Debian's package ca-certificates.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

fail() {
  printf 'image: %s\n' "$*" >&2
  exit 1
}

[ "$#" -ge 2 ] || fail 'usage: build.sh ARCHIVE NAME:TAG [amd64|arm64]'
archive=$1 name=$2
case ${3:-$(uname -m)} in
amd64 | x86_64) architecture=amd64 ;;
arm64 | aarch64) architecture=arm64 ;;
*) fail "unsupported architecture: ${3:-$(uname -m)}" ;;
esac

binary=$(bash image/static.sh workflow-run-stop-operator "$architecture")

root=$(mktemp -d)
trap 'rm -rf -- "$root"' EXIT
install -D -m 755 -- "$binary" "$root/workflow-run-stop-operator"
# Uses the files of the package, not the machine's bundle, which may contain private authorities.
if [ -n "${CA_CERTIFICATES-}" ]; then
  install -D -m 644 -- "$CA_CERTIFICATES" "$root/etc/ssl/certs/ca-certificates.crt"
else
  set -- /usr/share/ca-certificates/mozilla/*.crt
  [ -e "$1" ] || fail 'no certificates: install ca-certificates (Debian), or set CA_CERTIFICATES to a PEM file'
  install -d -m 755 -- "$root/etc/ssl/certs"
  cat -- "$@" >"$root/etc/ssl/certs/ca-certificates.crt"
fi

# Keep in sync with the Dockerfile. The variable is for glibc: buffers of this size or more are returned to the system when they
# are freed.
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
revision=$(git rev-parse HEAD 2>/dev/null || printf unknown)
config='{"User":"65532:65532","Env":["MALLOC_MMAP_THRESHOLD_=65536"],"Entrypoint":["/workflow-run-stop-operator"],"WorkingDir":"/","Labels":{'
config+='"org.opencontainers.image.title":"workflow-run-stop-operator",'
config+='"org.opencontainers.image.description":"A Kubernetes operator that stops Amperity workflow runs, once",'
config+='"org.opencontainers.image.licenses":"Apache-2.0",'
config+='"org.opencontainers.image.version":"'"$version"'",'
config+='"org.opencontainers.image.revision":"'"$revision"'"}}'
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || printf 0)} \
  bash image/oci-archive.sh "$archive" "$name" "linux/$architecture" "$root" "$config"
