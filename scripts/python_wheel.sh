#!/usr/bin/env bash
# Builds the wheel of flashrnn-python, and tests it in a fresh virtual environment: with NumPy alone,
# then with PyTorch. Skips, and says so, only what pip cannot fetch because its registry cannot be
# reached. Prints a last line that says what was tested.
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
package=$repository/flashrnn-python
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$repository/target}
work=$CARGO_TARGET_DIR/python
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_QUIET=1

# Installs packages into the environment $1. If that fails because the registry cannot be reached,
# ends the script with the message that $skipped was not tested.
install() {
    local environment=$1
    shift
    "$environment/bin/pip" install "$@" && return
    if "$environment/bin/pip" download --no-deps --dest "$(mktemp -d)" packaging; then
        echo "pip reaches its registry, but cannot install $*"
        exit 1
    fi
    echo "pip cannot reach its registry: $skipped was not tested"
    exit 0
}

# Runs pytest outside the repository, so that it imports the installed package.
run_tests() {
    (cd "$work" && fresh/bin/python -m pytest -q -p no:cacheprovider "$@")
}

rm -rf "$work"
mkdir -p "$work"
skipped="the Python package"
python3 -m venv "$work/tools"
install "$work/tools" maturin==1.16.0 ruff==0.17.6
"$work/tools/bin/ruff" check --no-cache "$package"
"$work/tools/bin/ruff" format --no-cache --check "$package"

"$work/tools/bin/maturin" build --quiet --release --strip --locked --out "$work" \
    --manifest-path "$package/Cargo.toml"
wheel=$(echo "$work"/*.whl)
size=$(stat -c %s "$wheel")
echo "$(basename "$wheel"): $size bytes"
test "$size" -lt 4000000

python3 -m venv "$work/fresh"
install "$work/fresh" "$wheel" pytest==9.2.0
run_tests "$package/tests/test_numpy.py" "$package/tests/test_package.py"

skipped="the Python package with PyTorch"
# PyTorch, and what it needs to work on the CPU.
install "$work/fresh" --no-deps torch==2.15.0 nvidia-cuda-cupti nvidia-cuda-runtime
install "$work/fresh" typing_extensions filelock sympy networkx jinja2 fsspec setuptools expecttest
site=$("$work/fresh/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
stand_ins=$work/stand-ins
cuda=$(dirname "$(find "$site/nvidia" -name "libcudart.so.*" | head -n 1)")
if python3 "$repository/scripts/torch_stand_ins.py" "$site/torch/lib" "$stand_ins" &&
    LD_LIBRARY_PATH=$stand_ins:$cuda "$work/fresh/bin/python" -c "import torch"; then
    export LD_LIBRARY_PATH=$stand_ins:$cuda${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
else
    echo "the stand-ins for CUDA's libraries do not fit this PyTorch; installing the real ones"
    install "$work/fresh" torch==2.15.0
fi
# The packages whose functions are replaced.
install "$work/fresh" --no-deps flashrnn==1.0.8 sb3-contrib==2.9.2 stable-baselines3==2.9.0 \
    gymnasium==1.4.0 cloudpickle farama-notifications \
    tirex-ts==1.4.2 xlstm==2.0.6 omegaconf antlr4-python3-runtime==4.9.3 dacite \
    torchrl==0.14.1 tensordict==0.14.3 pyvers==0.2.3 hoptorch==0.1.4
install "$work/fresh" scikit-learn huggingface-hub # imported by tirex-ts
install "$work/fresh" orjson importlib_metadata    # imported by torchrl
install "$work/fresh" mypy==2.4.1
(cd "$package" && "$work/fresh/bin/mypy" --cache-dir "$work/mypy" python)
run_tests "$package/tests"
echo "the wheel was tested with NumPy and PyTorch"
