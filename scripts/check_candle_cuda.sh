#!/usr/bin/env bash
# Lints flashrnn-candle with its feature candle-cuda, on a machine without CUDA and without
# compiling candle's kernels, which takes minutes. A stand-in for nvcc writes empty files in their
# place.
set -euo pipefail
cd "$(dirname "$0")/.."
toolkit=$(mktemp -d)
trap 'rm -rf "$toolkit"' EXIT
mkdir "$toolkit"/{bin,include,lib64}
cat >"$toolkit/bin/nvcc" <<'NVCC'
#!/usr/bin/env bash
# nvcc ... -o FILE ..., or nvcc ... --ptx --output-directory FOLDER ... FILE.cu
case "$*" in
--version) echo "Cuda compilation tools, release 13.0, V13.0.88" ;;
--list-gpu-code) echo sm_90 ;;
*)
    last=${*: -1}
    while [ $# -gt 0 ]; do
        case "$1" in
        -o) : >"$2" ;;
        --output-directory) : >"$2/$(basename "${last%.cu}").ptx" ;;
        esac
        shift
    done
    ;;
esac
NVCC
chmod +x "$toolkit/bin/nvcc"
# Kept apart, because cargo would take what nvcc has not compiled for kernels.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}/candle-cuda-check
export PATH=$toolkit/bin:$PATH CUDA_HOME=$toolkit CUDA_PATH=$toolkit CUDA_COMPUTE_CAP=90
cargo clippy -p flashrnn-candle --features candle-cuda --all-targets -- -D warnings
