#!/usr/bin/env bash
# Runs the tests that gpu_bundle.sh put into this folder, on a machine with a GPU. Fails if a test
# fails or is skipped:
#
#     gpu_test.sh [--sanitize] [names of tests, such as flashrnn-cuda.conformance; all by default]
#
# --sanitize instead runs every kernel on small problems under compute-sanitizer's memcheck and
# racecheck.
set -uo pipefail
cd "$(dirname "$0")"
export FLASHRNN_REQUIRE=cuda,wgpu
# Cached kernels could hide that a kernel no longer compiles.
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

# Runs a test binary, shows what it prints, and searches the output for skips.
run() {
    echo "== $*"
    if ! "$@" 2>&1 | tee "$log"; then
        failures+=("failed: $*")
    elif grep -E 'skipped: |; [1-9][0-9]* ignored;' "$log" |
        grep -qv 'skipped: WGSL '; then
        failures+=("skipped something: $*")
    elif ! grep -qE 'test result: ok\. [1-9]' "$log"; then
        failures+=("ran no test: $*")
    fi
}

if [ "$sanitize" ]; then
    for tool in memcheck racecheck; do
        # racecheck does not know mbarriers between the blocks of a cluster, so each mbarrier gets a
        # block barrier beside it.
        [ "$tool" = memcheck ] || export FLASHRNN_BLOCK_BARRIERS=1
        # One test at a time, because the tool disturbs the recording of graphs on other streams.
        checked=(compute-sanitizer --tool "$tool" --report-api-errors no --error-exitcode 9)
        run "${checked[@]}" tests/flashrnn-cuda.flashrnn_cuda --test-threads 1 --nocapture \
            tests::launch::kernels tests::launch::a_kernel tests::blas tests::recompute
        run "${checked[@]}" tests/flashrnn-cuda.device --nocapture \
            --exact every_kernel_on_a_small_problem
    done
else
    [ $# -gt 0 ] || set -- $(ls tests)
    for test in "$@"; do
        run "tests/$test" --nocapture
        if [ "$test" = flashrnn-wgpu.device ]; then # with cooperative matrices too
            run env FLASHRNN_WGPU_MATRIX=1 "tests/$test" --nocapture
        fi
    done
fi

if [ ${#failures[@]} -gt 0 ]; then
    printf '%s\n' "" "${failures[@]}"
    exit 1
fi
echo "all passed, none skipped"
