#!/usr/bin/env bash
# Runs a command with what building candle's CUDA kernels needs, on a machine without CUDA, as in
#
#   scripts/with_cuda_toolkit.sh cargo build --release -p flashrnn-candle --features candle-cuda
#
# CUDA_WHEELS names a folder that holds the wheels below, or that they are installed into. Programs
# built this way run where a driver and the CUDA 13 libraries are.
set -euo pipefail
target=${CARGO_TARGET_DIR:-$(dirname "$0")/../target}
mkdir -p "$target"
wheels=${CUDA_WHEELS:-$(realpath "$target")/cuda-wheels}
cuda=$wheels/nvidia/cu13
stubs=$(realpath "$target")/cuda-stubs

if [ ! -x "$cuda/bin/nvcc" ]; then
    python3 -m pip install -qq --no-deps --target "$wheels" \
        nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 \
        nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 nvidia-cuda-nvrtc==13.0.88
fi

# Libraries to link with in place of those that come with the driver or are large. Each defines
# every function that cudarc declares, and has the real library's soname, so that the program loads
# the real one when it starts.
cudarc=$(cargo metadata --format-version 1 --locked | python3 -c '
import json, os, sys
packages = json.load(sys.stdin)["packages"]
print(*(os.path.dirname(p["manifest_path"]) for p in packages if p["name"] == "cudarc"))')
stub() { # stub MODULE LIBRARY SONAME
    grep -ohE 'pub unsafe fn cu[A-Za-z0-9_]+' "$cudarc/src/$1/sys/mod.rs" | sort -u |
        sed -E 's/pub unsafe fn (.*)/void \1(void) {}/' |
        "${CC:-cc}" -shared -fPIC -Wl,-soname,"$3" -x c - -o "$stubs/lib$2.so"
}
if [ ! -e "$stubs/libcudart.so" ]; then
    mkdir -p "$stubs"
    stub driver cuda libcuda.so.1
    stub cublas cublas libcublas.so.13
    stub cublaslt cublasLt libcublasLt.so.13
    stub curand curand libcurand.so.10
    ln -sf "$cuda/lib/libnvrtc.so.13" "$stubs/libnvrtc.so"
    ln -sf "$cuda/lib/libcudart.so.13" "$stubs/libcudart.so"
fi

export PATH=$cuda/bin:$PATH CUDA_HOME=$cuda CUDA_PATH=$cuda
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90}
export CPATH=$cuda/include:$cuda/include/cccl${CPATH:+:$CPATH}
export LIBRARY_PATH=$stubs${LIBRARY_PATH:+:$LIBRARY_PATH}
exec "$@"
