// Rows of 16-bit elements that start in the middle of a 4-byte word (SPLIT_ROWS).
//
// IO warps copy whole words, so such a row keeps its position within the word: in shared memory it
// is shifted up by one element. Compute threads look up the shift here when they read the row.
#pragma once
#include "fused/block.cuh"

// One bit per tensor, set if the row of a token is shifted.
struct RowShifts {
    // Lower half: the bits at token 0. Upper half: the bits that flip from each token to the next.
    unsigned bits = 0;

    // `tensor_of(i)` returns tensor i. There are at most 16 tensors.
    template <class TensorOf>
    __device__ __forceinline__ RowShifts(int tensors, TensorOf tensor_of) {
        if constexpr (SPLIT_ROWS) {
#pragma unroll
            for (int i = 0; i < tensors; ++i) {
                const auto tensor = tensor_of(i);
                bits |= unsigned(reinterpret_cast<size_t>(tensor.first) / sizeof(T) & 1) << i;
                bits |= unsigned(tensor.token_stride & 1) << (16 + i);
            }
        }
    }

    // Returns the bits for a token whose index has the lowest bit `token_bit`.
    __device__ __forceinline__ unsigned at(unsigned token_bit) const {
        return SPLIT_ROWS ? bits ^ (bits >> 16 & -token_bit) : 0;
    }
};

static_assert(Cell::GATES <= 16 && Cell::STATES <= 16, "bits of RowShifts");

// Computes the lowest bit of the token of each step of a batch row.
struct TokenBit {
    unsigned first, per_step;  // the bit at step 0, and its change per step

    __device__ __forceinline__ TokenBit(const Sizes& sizes, int row)
        : first(unsigned(token_of(sizes, row, sizes.time, 0))),
          per_step(sizes.time_major ? sizes.batch : 1) {}

    __device__ __forceinline__ unsigned at(const Sizes& sizes, int row, int length,
                                           int step) const {
        if constexpr (RAGGED) return unsigned(token_of(sizes, row, length, step)) & 1;
        return (first ^ (per_step & unsigned(step))) & 1;
    }
};
