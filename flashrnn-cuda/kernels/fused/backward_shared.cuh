// The shared memory of the fused backward kernel, and its compile-time sizes.
#pragma once
#include "fused/exchange.cuh"
#include "fused/product.cuh"

// The product's tiles of 16 units of the head. Each group of SPLIT_K warps computes TILES_PER_WARP
// of the tiles.
constexpr int BLOCK_TILES = UNITS / 16, TILES = BLOCKS * BLOCK_TILES;
constexpr int GROUPS = COMPUTE_WARPS / SPLIT_K;
// The product's k runs over the recurrent gates of the block's units, in steps of 32 per split.
constexpr int K_STEPS = (Cell::RECURRENT * UNITS + 32 * SPLIT_K - 1) / (32 * SPLIT_K);
constexpr int K = SPLIT_K * K_STEPS * 32;
// The partial sums of a unit's dh: one per block and split.
constexpr int PARTIALS = BLOCKS * SPLIT_K;

// Outside the product, threads divide the pairs of a unit and a row.
constexpr int UNITS_PER_THREAD = (ROWS * UNITS + COMPUTE_THREADS - 1) / COMPUTE_THREADS;

static_assert(UNITS == 16 || UNITS == 32 || UNITS == 64, "whole tiles");
static_assert(COMPUTE_THREADS % ROWS == 0, "all units of a thread are in the same row");
static_assert(GROUPS * TILES_PER_WARP >= TILES, "the warps cover all tiles");

// Row lengths in shared memory, padded so that reads have no bank conflicts.
constexpr int DG_STRIDE = K + 8;
constexpr int IN_STRIDE = UNITS + 8;
constexpr int WIDE_STRIDE = UNITS + 4;

// The tensors in `Shared::in`: the gates, the states before the step, and the gradients of the
// states from the caller.
constexpr int GATES_IN = 0, BEFORE_IN = Cell::GATES, D_IN = Cell::GATES + Cell::STATES;
constexpr int IN = Cell::GATES + 2 * Cell::STATES;
constexpr bool KEEPS_WIDE = sizeof(T) < sizeof(float);
constexpr int WIDE_STATES = KEEPS_WIDE ? count(Cell::WIDE) : 0;
constexpr int WIDE_GATES = KEEPS_WIDE ? count(Cell::WIDE_GATES) : 0;
constexpr int WIDE = WIDE_STATES + WIDE_GATES;
// Gates without recurrent input. The product does not read their dg.
constexpr int EXTERNAL_ONLY = Cell::GATES - Cell::RECURRENT;

// Fused::backward_shared in Rust computes the size of this struct. Round r processes time step
// T - 1 - r.
struct Shared {
    T dg[2][ROWS][DG_STRIDE];  // of round r in r % 2
    T external_dg[2][at_least_one(EXTERNAL_ONLY)][ROWS][IN_STRIDE];
    T in[STAGES][IN][ROWS][IN_STRIDE];  // of round r in r % STAGES
    float wide[STAGES][at_least_one(WIDE)][ROWS][WIDE_STRIDE];
    alignas(16) float partials[2][PARTIALS][UNITS][ROWS];  // round r sums those in r % 2
    unsigned resets[STAGES];  // bit b: row b is reset before this step; 8 + b: before the next one
    Barrier full[2];          // of partials[0] and partials[1], see exchange.cuh
};

static_assert(sizeof(Shared) <= SHARED_BYTES, "Fused::backward_shared differs from this struct");

// Returns the interleaved gates of a stage, [ROWS][IN_STRIDE], which replace its gates.
__device__ __forceinline__ GateVector* gate_vectors(Shared& shared, int stage) {
    return reinterpret_cast<GateVector*>(&shared.in[stage][GATES_IN][0][0]);
}

// Returns dg of a gate, row and unit of the block.
__device__ __forceinline__ T& dg_at(Shared& shared, int round, int gate, int row, int unit) {
    const unsigned now = unsigned(round) % 2;
    return gate < Cell::RECURRENT
               ? shared.dg[now][row][gate % Cell::RECURRENT * UNITS + unit]
               : shared.external_dg[now][::max(gate - Cell::RECURRENT, 0)][row][unit];
}

// These return the tensors that a step reads, from the block's first unit: a gate, the gradient of
// a state (null if the caller passes none), and a state.
__device__ __forceinline__ Tensor<const T> gate_in(const BackwardCall& call, const Block& block,
                                                   int gate) {
    return gate_tensor(call.gates, call.sizes, gate, block.place());
}
__device__ __forceinline__ Tensor<const T> d_in(const BackwardCall& call, const Block& block,
                                                int s) {
    const Offset units = call.sizes.units(), at = s * call.sizes.tokens() * units + block.place();
    return {s < call.d_states_count ? call.d_states + at : nullptr, units};
}
__device__ __forceinline__ Tensor<const T> state_in(const BackwardCall& call, const Block& block,
                                                    int s) {
    const Offset units = call.sizes.units();
    return {call.states + s * call.sizes.tokens() * units + block.place(), units};
}
