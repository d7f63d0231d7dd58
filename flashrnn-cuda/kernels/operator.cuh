// The operator's sizes and options, and where each step of each row is in memory.
//
//     g_t = R s0_{t-1} + x_t + b            s_t = P(s_{t-1}, g_t)
//
// A *step* counts in processing order. A *position* is the place in time that a step reads and
// writes. A *token* is a position of a row, as an index into the B T tokens of the caller's layout.
#pragma once
#include "cell.cuh"
#include "element.cuh"

// call.rs declares this struct in Rust.
struct Sizes {
    int batch, time, heads, head_dim;
    int depth;       // D rounded up to whole chunks: the row length of packed R and exchanged h
    int time_major;  // tokens are [T, B] instead of [B, T]
    int reverse;     // time runs backwards, each row from its own end

    __device__ __forceinline__ Offset units() const { return Offset(heads) * head_dim; }
    __device__ __forceinline__ Offset tokens() const { return Offset(batch) * time; }
    __device__ __forceinline__ Offset token(int row, int position) const {
        return time_major ? Offset(position) * batch + row : Offset(row) * time + position;
    }
};

// Returns the token that a step processes in a row of `length` steps.
__device__ __forceinline__ Offset token_of(const Sizes& sizes, int row, int length, int step) {
    return sizes.token(row, sizes.reverse && step < length ? length - 1 - step : step);
}

// One row of the batch.
struct Row {
    int index, length;

    Row() = default;

    // `lengths` [B] may be null. It is in device memory, so lengths are clamped here instead of
    // checked.
    __device__ __forceinline__ Row(const Sizes& sizes, const int* lengths, int row)
        : index(row), length(sizes.time) {
        if (lengths) length = ::min(::max(lengths[row], 0), sizes.time);
    }

    __device__ __forceinline__ bool active(int step) const { return step < length; }

    __device__ __forceinline__ Offset token(const Sizes& sizes, int step) const {
        return token_of(sizes, index, length, step);
    }

    // Returns whether the state is zeroed before the step. `resets` [tokens] may be null.
    __device__ __forceinline__ bool reset(const Sizes& sizes, const unsigned char* resets,
                                          int step) const {
        return resets && step < length && resets[token(sizes, step)] != 0;
    }
};

// Returns the length of an array for `n` elements, since C++ has no empty arrays.
__host__ __device__ constexpr int at_least_one(int n) { return n < 1 ? 1 : n; }

// Returns the number of bits in `set`. The compiler would not fold a loop to a constant.
__host__ __device__ constexpr int count(unsigned set) {
    set -= set >> 1 & 0x55555555;
    set = (set & 0x33333333) + (set >> 2 & 0x33333333);
    return ((set + (set >> 4)) & 0x0f0f0f0f) * 0x01010101 >> 24;
}

// Returns the number of bits of `set` below bit k, 0 <= k < 32.
__host__ __device__ constexpr int rank(unsigned set, int k) {
    return count(set & ((1u << k) - 1));
}

// Returns whether state or gate k is wide, that is, saved in f32 when tensors are 16-bit. `set` is
// Cell::WIDE or Cell::WIDE_GATES.
__host__ __device__ constexpr bool kept_wide(unsigned set, int k) {
    return sizeof(T) < sizeof(float) && (set >> k & 1);
}

// The number of gates without external input. They are the first gates.
constexpr int INNER = Cell::GATES - Cell::EXTERNAL;

// A tensor of all gates in two parts, [tokens, Gx, N, D] and [tokens, G - Gx, N, D]. call.rs
// declares this struct in Rust.
template <class P> struct Gates {
    P *external, *inner;

    // Returns the element of a gate. `unit` is an index into [N, D].
    __device__ __forceinline__ P& at(const Sizes& sizes, Offset token, int gate,
                                     Offset unit) const {
        const Offset row = token * sizes.units();
        return gate < INNER ? inner[row * INNER + gate * sizes.units() + unit]
                            : external[row * Cell::EXTERNAL + (gate - INNER) * sizes.units() + unit];
    }
};
