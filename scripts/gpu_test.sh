#!/usr/bin/env bash
# Runs the tests that gpu_bundle.sh put into this folder, on a machine with a GPU, and fails if one
# fails or was skipped:
#
#     gpu_test.sh [--sanitize] [names of tests, such as flashrnn-cuda.conformance; all by default]
#
# --sanitize runs every kernel on small problems under compute-sanitizer instead, with memcheck and
# with racecheck.
set -uo pipefail
cd "$(dirname "$0")"
export FLASHRNN_REQUIRE=cuda,wgpu
# Kernels compiled before must not hide that one no longer compiles.
FLASHRNN_CACHE=$(mktemp -d)
export FLASHRNN_CACHE
log=$(mktemp)
trap 'rm -rf "$FLASHRNN_CACHE" "$log"' EXIT

sanitize=
if [ "${1-}" = --sanitize ]; then
    sanitize=yes
    shift
fi
failures=()

# Runs a test binary: what it prints is shown and searched.
run() {
    echo "== $*"
    if ! "$@" 2>&1 | tee "$log"; then
        failures+=("failed: $*")
    elif grep -E 'skipped: |; [1-9][0-9]* ignored;' "$log" | grep -qv 'skipped: WGSL promises nothing'; then
        failures+=("skipped something: $*")
    elif ! grep -qE 'test result: ok\. [1-9]' "$log"; then
        failures+=("ran no test: $*")
    fi
}

if [ "$sanitize" ]; then
    for tool in memcheck racecheck; do
        # It takes what clusters order by mbarriers for races: there blocks have a barrier beside
        # each.
        [ "$tool" = memcheck ] || export FLASHRNN_BLOCK_BARRIERS=1
        # One test at a time: what it does on one stream spoils a recording on another.
        checked=(compute-sanitizer --tool "$tool" --report-api-errors no --error-exitcode 9)
        run "${checked[@]}" tests/flashrnn-cuda.flashrnn_cuda --test-threads 1 --nocapture \
            tests::launch::kernels tests::launch::a_kernel tests::blas tests::recompute
        run "${checked[@]}" tests/flashrnn-cuda.device --nocapture --exact every_kernel_on_a_small_problem
    done
else
    [ $# -gt 0 ] || set -- $(ls tests)
    for test in "$@"; do
        run "tests/$test" --nocapture
        # Where there are cooperative matrices, with them too.
        [ "$test" != flashrnn-wgpu.device ] || run env FLASHRNN_WGPU_MATRIX=1 "tests/$test" --nocapture
    done
fi

if [ ${#failures[@]} -gt 0 ]; then
    printf '%s\n' "" "${failures[@]}"
    exit 1
fi
echo "all passed, none skipped"
