// The compile-time layout of the fused kernels, and the part of the problem that a block owns.
//
// programs/sources.rs defines these macros. The first group is the Rust struct `Fused`:
//
//   BLOCKS          blocks per cluster; a cluster owns one head and ROWS batch rows
//   UNITS           units of the head per block
//   ROWS            batch rows per block, 4 or 8
//   COMPUTE_WARPS   warps that run the product and the cell
//   IO_WARPS        warps that prefetch inputs and store results
//   SPLIT_K         compute warps that share an output tile, each with its part of k
//   TILES_PER_WARP  tiles of 16 units per compute warp (backward)
//   STAGES          steps of inputs in shared memory
//
//   HEAD_DIM        units per head
//   SHARED_BYTES    the size of `Shared` as computed in Rust
//   COPY_BYTES      the largest of 16, 8, 4, 2 and 1 that divides the address of every row
//   TENSOR_CORES    1 for 16-bit tensors, 0 for f32
//
// A time step is so short that testing for an option at run time would cost more than the option
// itself, so each combination of options is a separate program:
//
//   SAVES           the forward pass writes what a backward pass needs
//   RAGGED          the call has lengths or resets
//   CLIPS           the plan clips, or cuts the recurrent gradient
//   INTERLEAVED     saved gates are [tokens, N, D, G]
//   DELAYS, BLOCK_BARRIERS  for tests, see exchange.cuh
#pragma once
#include "call.cuh"

static_assert(ROWS == 4 || ROWS == 8,
              "a tensor core tile has 8 batch rows; 4 leave work for more blocks");

constexpr int COMPUTE_THREADS = 32 * COMPUTE_WARPS;
constexpr int THREADS = COMPUTE_THREADS + 32 * IO_WARPS;

constexpr int CHUNK = 64 / sizeof(T);
constexpr int DEPTH = (HEAD_DIM + CHUNK - 1) / CHUNK * CHUNK;  // row length of packed R

constexpr int MAX_UNITS = BLOCKS == 1 ? HEAD_DIM : UNITS;  // of any block

// Rows may begin in the middle of a 4-byte word.
constexpr bool SPLIT_ROWS = COPY_BYTES < 4;

// The head, batch rows and units of a block.
struct Block {
    int head, row0, unit0, units, rows;

    __device__ __forceinline__ Block(const Sizes& sizes) {
        const int cluster = blockIdx.x / BLOCKS;
        head = cluster % sizes.heads;
        row0 = cluster / sizes.heads * ROWS;
        unit0 = blockIdx.x % BLOCKS * UNITS;
        units = ::max(0, ::min(UNITS, HEAD_DIM - unit0));
        rows = ::min(ROWS, sizes.batch - row0);
    }

    // Returns the index of the block's first unit in [N, D].
    __device__ __forceinline__ Offset place() const { return Offset(head) * HEAD_DIM + unit0; }
};

// A tensor in global memory: the address of the block's first unit at token 0, and the number of
// elements between tokens.
template <class P> struct Tensor {
    P* first;
    Offset token_stride;
};

// Returns one gate of the two tensors that hold all gates.
template <class P>
__device__ __forceinline__ Tensor<P> gate_tensor(const Gates<P>& gates, const Sizes& sizes,
                                                 int gate, Offset place) {
    const int per_token = gate < INNER ? INNER : Cell::EXTERNAL;
    return {&gates.at(sizes, 0, gate, place), per_token * sizes.units()};
}

// All gates of a unit, as saved with INTERLEAVED, aligned to their size. Without INTERLEAVED this
// is not used, and one element keeps the type valid for any number of gates.
constexpr int VECTOR_GATES = INTERLEAVED ? Cell::GATES : 1;
struct alignas(VECTOR_GATES * sizeof(T)) GateVector {
    T gate[VECTOR_GATES];
};

// Returns the interleaved gates, from the block's first unit.
template <class P, class E>
__device__ __forceinline__ Tensor<P> gate_vectors(const Gates<E>& gates, const Sizes& sizes,
                                                  Offset place) {
    return {reinterpret_cast<P*>(gates.external) + place, sizes.units()};
}
