#!/usr/bin/env bash
# Checks what would be published: every crate can be packaged, with its licences and a README, and
# the command does not depend on proptest.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-$PWD/target}/packages
rm -rf "$target/package"
CARGO_TARGET_DIR=$target cargo package --quiet --workspace --no-verify --allow-dirty
for crate in "$target"/package/*.crate; do
    files=$(tar tzf "$crate")
    for file in LICENSE-MIT LICENSE-APACHE README.md; do
        grep -q "/$file\$" <<<"$files" || { echo "$(basename "$crate") lacks $file"; exit 1; }
    done
done
echo "packed: $(cd "$target/package" && echo *.crate)"
if cargo tree --quiet --package flashrnn-cli --edges normal --prefix none | grep '^proptest '; then
    echo "the command depends on proptest"
    exit 1
fi
