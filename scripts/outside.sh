#!/usr/bin/env bash
# Builds and runs a crate outside this workspace that depends on flashrnn-cuda, as a user's crate
# would: without our .cargo/config.toml and without CUDA in the environment. The crate opens the
# first device, or reports what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-$PWD/target}/outside
outside=$(mktemp -d)
trap 'rm -rf "$outside"' EXIT

mkdir "$outside/src"
cat >"$outside/Cargo.toml" <<EOF
[package]
name = "outside"
version = "0.0.0"
edition = "2024"

[dependencies]
flashrnn-cuda = { path = "$PWD/flashrnn-cuda" }

[workspace]
EOF
cat >"$outside/src/main.rs" <<'EOF'
fn main() {
    match flashrnn_cuda::Cuda::new() {
        Ok(cuda) => println!("found {}", cuda.name()),
        Err(error) => println!("{error}"),
    }
}
EOF
# Uses our lock file's versions, so that nothing new is fetched.
cp Cargo.lock "$outside"

cd "$outside"
kept=(HOME="$HOME" PATH="$PATH")
for name in CARGO_HOME RUSTUP_HOME RUSTUP_TOOLCHAIN; do
    [ -z "${!name-}" ] || kept+=("$name=${!name}")
done
said=$(env -i "${kept[@]}" CARGO_TARGET_DIR="$target" cargo run --quiet)
echo "$said"
grep -qE '^found |^device: .+' <<<"$said"
