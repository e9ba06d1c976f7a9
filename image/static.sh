#!/usr/bin/env bash
# Owns building one program of this workspace for Linux, statically linked. Prints the path of the binary.
# Never prints anything else to stdout.
#
#   static.sh PROGRAM amd64|arm64
#
# The program is linked with glibc. Since 2.34 a static glibc resolves names from /etc/hosts and DNS without shared libraries.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

fail() {
  printf 'static build: %s\n' "$*" >&2
  exit 1
}

[ "$#" -eq 2 ] || fail 'usage: static.sh PROGRAM amd64|arm64'
program=$1
# Builds only the program's own package, without the dependencies of the other program.
case $program in
kubectl-stop_run) package=kubectl-stop-run ;;
*) package=$program ;;
esac
case $2 in
amd64) target=x86_64-unknown-linux-gnu ;;
arm64) target=aarch64-unknown-linux-gnu ;;
*) fail "unsupported architecture: $2" ;;
esac

glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null) || fail 'glibc 2.34 or newer is needed; on other systems, build the image with the Dockerfile'
[ "$(printf '%s\n' 2.34 "${glibc#glibc }" | sort -V | head -n 1)" = 2.34 ] || fail "glibc 2.34 or newer is needed, this is $glibc"

# Cross compiling needs the standard library and the linker of the target.
if [ "$(uname -m)" != "${target%%-*}" ]; then
  cross=${target%%-*}-linux-gnu-gcc
  command -v "$cross" >/dev/null || fail "$cross is missing (Debian: gcc-${target%%-*}-linux-gnu)"
  [ -d "$(rustc --print sysroot)/lib/rustlib/$target" ] || fail "the standard library is missing: rustup target add $target"
  upper=$(printf '%s' "$target" | tr 'a-z-' 'A-Z_')
  export "CARGO_TARGET_${upper}_LINKER=$cross"
fi

# With --target, the flags apply only to the program, not to build scripts and procedural macros.
unset CARGO_ENCODED_RUSTFLAGS
export RUSTFLAGS='-C target-feature=+crt-static'
binary=$(cargo build --release --locked --target "$target" --package "$package" --bin "$program" \
  --message-format=json-render-diagnostics | sed -n 's|.*"executable":"\([^"]*/'"$program"'\)".*|\1|p')
[ -n "$binary" ] || fail "cargo built no $program"
printf '%s\n' "$binary"
