// The operator's sizes and options, and where each step of each row lies in memory.
//
//     g_t = R s0_{t-1} + x_t + b            s_t = P(s_{t-1}, g_t)
//
// A *step* counts in processing order, a *position* is the place in time that it reads and writes;
// a *token* is a position of a row among the B*T of the caller's layout.
#pragma once

struct Sizes {
    int batch, time, heads, head_dim;
    int depth;       // D rounded up to whole chunks: the length of a row of packed weights and of the exchanged h
    int time_major;  // tokens are [T, B] instead of [B, T]
    int reverse;     // time runs backwards, each row from its own end

    __device__ __forceinline__ Offset units() const { return Offset(heads) * head_dim; }
    __device__ __forceinline__ Offset tokens() const { return Offset(batch) * time; }
    __device__ __forceinline__ Offset token(int row, int position) const {
        return time_major ? Offset(position) * batch + row : Offset(row) * time + position;
    }
};

// The token of a step of a row of this length.
__device__ __forceinline__ Offset token_of(const Sizes& sizes, int row, int length, int step) {
    return sizes.token(row, sizes.reverse && step < length ? length - 1 - step : step);
}

// One row of the batch.
struct Row {
    int index, length;

    __device__ __forceinline__ Row(const Sizes& sizes, const int* lengths, int row) : index(row), length(sizes.time) {
        if (lengths) length = ::min(::max(lengths[row], 0), sizes.time);
    }

    __device__ __forceinline__ bool active(int step) const { return step < length; }

    __device__ __forceinline__ Offset token(const Sizes& sizes, int step) const {
        return token_of(sizes, index, length, step);
    }

    // Whether the state is zeroed before this step.
    __device__ __forceinline__ bool reset(const Sizes& sizes, const unsigned char* resets, int step) const {
        return resets && step < length && resets[token(sizes, step)] != 0;
    }
};

// How many bits are set. (Without a loop, so that it becomes a number wherever the set is known: a
// loop stayed one.)
__host__ __device__ constexpr int count(unsigned set) {
    set -= set >> 1 & 0x55555555;
    set = (set & 0x33333333) + (set >> 2 & 0x33333333);
    return ((set + (set >> 4)) & 0x0f0f0f0f) * 0x01010101 >> 24;
}

// How many bits of `set` lie below bit k, of 0 to 31.
__host__ __device__ constexpr int rank(unsigned set, int k) { return count(set & ((1u << k) - 1)); }

// Whether a state or a gate is kept in f32 beside the 16-bit tensors.
__host__ __device__ constexpr bool kept_wide(unsigned set, int k) { return sizeof(T) < sizeof(float) && (set >> k & 1); }

// The gates that take no external input come first.
constexpr int INNER = Cell::GATES - Cell::EXTERNAL;

// Where a gate of one unit and token lies in the pair of tensors [tokens, Gx, N, D] and [tokens, G
// - Gx, N, D].
template <class P> struct Gates {
    P *external, *inner;

    __device__ __forceinline__ P& at(const Sizes& sizes, Offset token, int gate, Offset unit) const {
        return gate < INNER ? inner[(token * INNER + gate) * sizes.units() + unit]
                            : external[(token * Cell::EXTERNAL + gate - INNER) * sizes.units() + unit];
    }
};
