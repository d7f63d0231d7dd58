#!/usr/bin/env bash
# Runs the CPU backend's tests under AddressSanitizer, which reports every access outside an
# allocation. The stable toolchain has the sanitizer's runtime; RUSTC_BOOTSTRAP lets it accept the
# unstable flag.
set -euo pipefail
cd "$(dirname "$0")/.."
target=x86_64-unknown-linux-gnu
export RUSTC_BOOTSTRAP=1 CARGO_INCREMENTAL=0
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}/address_sanitizer
# Debug assertions are off, because their checks would panic before the sanitizer sees the access.
export RUSTFLAGS="-Zsanitizer=address -Cdebug-assertions=off"
# The skipped test limits the address space so that no thread can start. The sanitizer cannot run
# under such a limit.
exec cargo test -p flashrnn-cpu --lib --tests --target "$target" "$@" -- \
    --skip threads_without_room_are_an_error
