#!/usr/bin/env bash
# The CPU backend's tests under AddressSanitizer, which sees every access outside an allocation. The
# toolchain is the stable one: the sanitizer's runtime comes with it, and RUSTC_BOOTSTRAP lets it
# take the unstable flag.
set -euo pipefail
cd "$(dirname "$0")/.."
target=x86_64-unknown-linux-gnu
export RUSTC_BOOTSTRAP=1 CARGO_INCREMENTAL=0
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}/address_sanitizer
# Without debug assertions: their checks of addresses would panic before the sanitizer sees the
# access.
export RUSTFLAGS="-Zsanitizer=address -Cdebug-assertions=off"
# The sanitizer needs memory for every thread, so it cannot run where there is none.
exec cargo test -p flashrnn-cpu --lib --tests --target "$target" "$@" -- \
    --skip threads_without_room_are_an_error
