// What the fused kernels' helping warps do: bring a step's inputs to shared memory ahead of time, and take results from there,
// 16 bytes a lane. A lane has one row of the batch, and its addresses are worked out once, before the time loop.
#pragma once
#include "fused.cuh"

static_assert(ROWS == 4 || ROWS == 8, "the tensor cores take 8 rows of the batch; 4 leave more to other blocks");

constexpr int LANES = 32 / ROWS;  // of a helping warp, for a row

__device__ __forceinline__ int helping_row() { return threadIdx.x % 32 / LANES; }

// Which units, head and rows a block has.
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

    // The block's first unit among the N D of a token.
    __device__ __forceinline__ Offset place() const { return Offset(head) * HEAD_DIM + unit0; }
};

// A tensor in global memory: the block's first unit at token 0, and the elements from a token to the next.
template <class P> struct Tensor {
    P* first;
    Offset token_stride;
};

// The token of the first step that is carried, and the tokens from each step to the next: where every row has all steps.
struct Walk {
    Offset token, advance;

    // From step `first`, forwards (direction 1) or backwards (-1).
    __device__ __forceinline__ Walk(const Sizes& sizes, const Row& row, int first, int direction)
        : token(sizes.token(row.index, sizes.reverse ? sizes.time - 1 - first : first)),
          advance((sizes.reverse ? -direction : direction) * (sizes.time_major ? sizes.batch : 1)) {}
};

template <class P> struct Plain { using Type = P; };
template <class P> struct Plain<const P> { using Type = P; };

// Where things lie in shared memory, from one address that the compiler holds in a register: left alone it works each out anew
// every step, from the block's place in its cluster.
struct SharedAddresses {
    const void* memory;
    unsigned first;

    __device__ __forceinline__ explicit SharedAddresses(const void* memory) : memory(memory) {
        asm volatile("mov.u32 %0, %1;" : "=r"(first) : "r"(shared_address(memory)));
    }
    __device__ __forceinline__ unsigned operator()(const void* p) const {
        return first + unsigned(static_cast<const char*>(p) - static_cast<const char*>(memory));
    }
};

// This lane's share of the block's units of its row, of TENSORS tensors. In shared memory a tensor begins TENSOR_STRIDE elements
// after the one before, a row ROW_STRIDE after the one before.
//
// A token is looked up where rows are ragged; elsewhere each call goes on to the next step by itself.
template <class P, int TENSORS, int TENSOR_STRIDE, int ROW_STRIDE> struct Pieces {
    using Element = typename Plain<P>::Type;
    static constexpr int WIDTH = 16 / sizeof(P);                // units of a piece
    static constexpr int OF_ROW = (UNITS / WIDTH + LANES - 1) / LANES;  // pieces of a row, for each of its lanes
    static constexpr int COUNT = (TENSORS * OF_ROW + HELPERS - 1) / HELPERS;

    P* at[at_least_one(COUNT)];          // RAGGED: at token 0, else at the next step
    Offset stride[at_least_one(COUNT)];  // elements from a token, or step, to the next
    int place[at_least_one(COUNT)], units[at_least_one(COUNT)];  // in shared memory, in bytes; no units where there is nothing

    template <class TensorOf>
    __device__ __forceinline__ Pieces(const Block& block, const Walk& walk, TensorOf tensor_of) {
        const int helper = threadIdx.x / 32 - WARPS, r = helping_row(), q = threadIdx.x % LANES;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            const int item = helper + i * HELPERS;
            const int which = item / OF_ROW, unit = (item % OF_ROW * LANES + q) * WIDTH;
            const bool exists = which < TENSORS && unit < block.units && r < block.rows;
            const Tensor<P> tensor = exists ? tensor_of(which) : Tensor<P>{nullptr, 0};
            at[i] = tensor.first + unit + (RAGGED ? 0 : walk.token * tensor.token_stride);
            stride[i] = tensor.token_stride * (RAGGED ? 1 : walk.advance);
            place[i] = (which * TENSOR_STRIDE + r * ROW_STRIDE + unit) * int(sizeof(P));
            units[i] = tensor.first ? ::min(WIDTH, block.units - unit) : 0;
        }
    }

    __device__ __forceinline__ P* address(int i, Offset token) {
        if constexpr (RAGGED) return at[i] + token * stride[i];
        P* const now = at[i];
        at[i] += stride[i];
        return now;
    }

    // Brings what lies at `token` to shared memory at `shared`, without waiting where the addresses are aligned.
    __device__ __forceinline__ void fetch(unsigned shared, Offset token) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            const P* from = address(i, token);
            if (units[i] <= 0) continue;
            if constexpr (ALIGNED)
                copy_async(shared + place[i], from);
            else
                for (int unit = 0; unit < units[i]; ++unit) in_shared<Element>(shared + place[i], unit) = from[unit];
        }
    }

    // Takes what lies at `shared` to `token`; zeros where the row is not active.
    __device__ __forceinline__ void store(unsigned shared, Offset token, bool active) {
        uint4 v[at_least_one(COUNT)];
#pragma unroll
        for (int i = 0; i < COUNT; ++i)
            if (ALIGNED && units[i] > 0)
                v[i] = active ? in_shared<uint4>(shared + place[i]) : uint4{0, 0, 0, 0};
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            P* to = address(i, token);
            if (units[i] <= 0) continue;
            if constexpr (ALIGNED)
                *reinterpret_cast<uint4*>(to) = v[i];
            else
                for (int unit = 0; unit < units[i]; ++unit)
                    to[unit] = active ? in_shared<Element>(shared + place[i], unit) : Element{};
        }
    }
};

// The tensor of a gate, in the pair of tensors that hold those with and those without external input.
template <class P> __device__ __forceinline__ Tensor<P> gate_tensor(const Gates<P>& gates, const Sizes& sizes, int gate, Offset place) {
    const int of_token = gate < INNER ? INNER : Cell::EXTERNAL;
    return {&gates.at(sizes, 0, gate, place), of_token * sizes.units()};
}
