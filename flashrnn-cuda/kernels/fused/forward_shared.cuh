// The shared memory of the fused forward kernel, and its compile-time sizes.
#pragma once
#include "fused/exchange.cuh"
#include "fused/product.cuh"

constexpr int GROUPS = UNITS / 8;  // of 8 units, each computed by SPLIT_K warps
static_assert(COMPUTE_WARPS == GROUPS * SPLIT_K, "8 units per group of SPLIT_K warps");

// Steps of 16 along k for each split. With more than one split, the number is even.
constexpr int ALL_K_STEPS = (HEAD_DIM + 15) / 16;
constexpr int K_STEPS =
    SPLIT_K == 1 ? ALL_K_STEPS : (ALL_K_STEPS + 2 * SPLIT_K - 1) / (2 * SPLIT_K) * 2;
constexpr int K_OF_SPLIT = (K_STEPS + 1) / 2 * 2 * 16;

// Row lengths in shared memory, padded so that reads have no bank conflicts.
constexpr int MAX_K =
    K_OF_SPLIT * SPLIT_K > BLOCKS * UNITS ? K_OF_SPLIT * SPLIT_K : BLOCKS * UNITS;
constexpr int H_STRIDE = MAX_K + 8;
constexpr int X_STRIDE = UNITS + 8;
constexpr int WIDE_STRIDE = UNITS + 4;

// The number of tensors, apart from h, that are saved for the backward pass through shared memory.
// Interleaved gates are not among them, because the compute thread that has all gates of a unit
// stores them directly.
constexpr int SAVED = SAVES ? Cell::STATES - 1 + (INTERLEAVED ? 0 : Cell::GATES) : 0;
constexpr bool KEEPS_WIDE = SAVES && sizeof(T) < sizeof(float);
constexpr int WIDE_STATES = KEEPS_WIDE ? count(Cell::WIDE) : 0;
constexpr int WIDE = WIDE_STATES + (KEEPS_WIDE ? count(Cell::WIDE_GATES) : 0);

// Fused::forward_shared in Rust computes the size of this struct.
struct Shared {
    T h[2][ROWS][H_STRIDE];  // of the whole head; step n reads h[n % 2], writes the other
    T x[STAGES][at_least_one(Cell::EXTERNAL)][ROWS][X_STRIDE];  // wx of step n in n % STAGES
    T saved[2][at_least_one(SAVED)][ROWS][X_STRIDE];
    float wide[2][at_least_one(WIDE)][ROWS][WIDE_STRIDE];
    // Partial sums of all splits but the first, transposed so that lanes write consecutive words.
    float partials[at_least_one(SPLIT_K - 1)][ROWS_PER_LANE * at_least_one(Cell::RECURRENT)]
                  [SPLIT_K > 1 ? 32 * GROUPS : 1];
    unsigned resets[STAGES];  // bit r: row r's state is zeroed before the step
    Barrier full[2];          // of h[0] and h[1], see exchange.cuh
};

static_assert(sizeof(Shared) <= SHARED_BYTES, "Fused::forward_shared differs from this struct");

// Returns one gate of wx, from the block's first unit.
__device__ __forceinline__ Tensor<const T> x_tensor(const ForwardCall& call, const Block& block,
                                                    int gate) {
    const Offset units = call.sizes.units();
    return {call.wx + gate * units + block.place(), Cell::EXTERNAL * units};
}
