#!/usr/bin/env bash
# Builds the tests and the command for a machine that has a GPU but no Rust, and puts the stripped
# binaries into one folder:
#
#     scripts/gpu_bundle.sh FOLDER [cargo's options, such as --release]
#
# With CANDLE_CUDA=1 it also builds candle's CUDA kernels, which takes about ten minutes, and adds
# the tests of candle's layers on CUDA devices. They find CUDA's libraries by LD_LIBRARY_PATH.
#
# The binaries are in FOLDER/tests, FOLDER/benches and FOLDER/bin. Copy the folder to that machine
# and run its gpu_test.sh.
set -euo pipefail

folder=$(mkdir -p "${1:?the folder to fill}" && cd "$1" && pwd)
shift
cd "$(dirname "$0")/.."

# The tests that concern a GPU, and the command.
tests=(-p flashrnn-cuda -p flashrnn-wgpu)
candle_tests=(-p flashrnn-candle --features cuda --test cuda)
candle_cuda_tests=(-p flashrnn-candle --features candle-cuda)
for test in cuda_device cuda_copies gradients vectors frozen padding; do
    candle_cuda_tests+=(--test "$test")
done
command=(-p flashrnn-cli --features cuda,wgpu)
# Left out, because it needs NVRTC and no GPU; .ci/run runs it.
left_out=(kernels_compile)

rm -rf "$folder"/{tests,benches,bin}
mkdir -p "$folder"/{tests,benches,bin}
{
    cargo test --no-run --message-format=json "${tests[@]}" "$@"
    cargo test --no-run --message-format=json "${candle_tests[@]}" "$@"
    if [ "${CANDLE_CUDA-}" ]; then
        scripts/with_cuda_toolkit.sh \
            cargo test --no-run --message-format=json "${candle_cuda_tests[@]}" "$@"
    fi
    cargo build --message-format=json "${command[@]}" "$@"
} | python3 -c '
import json, os, shutil, sys

folder, left_out = sys.argv[1], sys.argv[2:]
for line in sys.stdin:
    message = json.loads(line)
    target = message.get("target", {})
    if not message.get("executable") or target["name"] in left_out:
        continue
    kind = "tests" if message["profile"]["test"] else "bin"
    if "bench" in target["kind"]:
        kind = "benches"
    # Two packages may have a test of the same name.
    package = os.path.basename(os.path.dirname(message["manifest_path"]))
    name = target["name"] if kind == "bin" else package + "." + target["name"]
    shutil.copy(message["executable"], os.path.join(folder, kind, name))
' "$folder" "${left_out[@]}"
find "$folder"/{tests,benches,bin} -type f -exec strip {} +
cp scripts/gpu_test.sh "$folder"
find "$folder" -type f -printf '%10s %P\n' | sort -k 2
du -sh "$folder" | cut -f 1
