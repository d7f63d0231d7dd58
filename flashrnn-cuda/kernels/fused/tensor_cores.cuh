// The arithmetic of the fused kernels for 16-bit tensors, on the tensor cores. n is the batch row.
// With ROWS == 4 each batch row takes two columns, and the second column of each pair is unused.
#pragma once
#include "fused/async_copy.cuh"
#include "fused/block.cuh"
#include "mma.cuh"

// Batch rows per compute thread. The first is lane % 4 * ROWS_PER_LANE.
constexpr int ROWS_PER_LANE = ROWS / 4;

// Rounds two states or gates to T, saturates them, and returns both, with `low` in the lower half.
__device__ __forceinline__ unsigned pack(float low, float high) {
    unsigned v;
    if constexpr (IS_BF16)
        asm("cvt.rn.satfinite.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
    else
        asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
    return v;
}

__device__ __forceinline__ float low(unsigned v) {
    T half;
    half.bits = (unsigned short)v;
    return widen(half);
}

__device__ __forceinline__ float high(unsigned v) {
    if constexpr (IS_BF16) return __uint_as_float(v & 0xffff0000u);
    T half;
    half.bits = (unsigned short)(v >> 16);
    return widen(half);
}

// Loads four 8 x 8 matrices. Lane l passes the address of row l % 8 of matrix l / 8. It receives
// its elements of each matrix or, if TRANSPOSED, of each transpose.
template <bool TRANSPOSED>
__device__ __forceinline__ void load_matrices(unsigned (&v)[4], unsigned address) {
    if constexpr (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                     : "r"(address)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                     : "r"(address)
                     : "memory");
}

// Stores the transposes of COUNT (1, 2 or 4) matrices. This is the inverse of load_matrices<true>.
// `row_of(i, row)` returns the address of a row of matrix i. Every lane must be able to call it for
// any i and row.
template <int COUNT, class RowOf>
__device__ __forceinline__ void store_transposed(const unsigned (&v)[COUNT], RowOf row_of) {
    const int lane = threadIdx.x % 32;
#if __CUDA_ARCH__ >= 900
    const unsigned address = shared_address(row_of(lane / 8 % COUNT, lane % 8));
    if constexpr (COUNT == 1)
        asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(address),
                     "r"(v[0])
                     : "memory");
    if constexpr (COUNT == 2)
        asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1,%2};" ::"r"(
                         address),
                     "r"(v[0]), "r"(v[1])
                     : "memory");
    if constexpr (COUNT == 4)
        asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(
                         address),
                     "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3])
                     : "memory");
#else
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        unsigned t;
        asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(t) : "r"(v[i]));
        *reinterpret_cast<unsigned*>(row_of(i, lane / 4) + lane % 4 * 2) = t;
    }
#endif
}

// Loads the elements of this lane's unit and rows from COUNT tensors. `first` is the address of row
// 0 of tensor 0 at the warp's first unit.
template <int COUNT>
__device__ __forceinline__ void load_tensors(float (&v)[at_least_one(COUNT)][ROWS_PER_LANE],
                                             const T* first, int tensor_stride, int row_stride) {
    const int lane = threadIdx.x % 32;
    const unsigned address = shared_address(first + lane % 8 * ROWS / 8 * row_stride);
#pragma unroll
    for (int begin = 0; begin < COUNT; begin += 4) {
        const int tensor = ::min(begin + lane / 8, COUNT - 1);
        unsigned matrices[4];
        load_matrices<true>(matrices, address + tensor * tensor_stride * int(sizeof(T)));
#pragma unroll
        for (int i = 0; i < 4 && begin + i < COUNT; ++i) {
#pragma unroll
            for (int j = 0; j < ROWS_PER_LANE; ++j)
                v[begin + i][j] = j == 0 ? low(matrices[i]) : high(matrices[i]);
        }
    }
}

// Stores the elements of this lane's unit and rows to COUNT tensors, the inverse of load_tensors.
template <int COUNT>
__device__ __forceinline__ void store_tensors(
    const float (&v)[at_least_one(COUNT)][ROWS_PER_LANE], T* first, int tensor_stride,
    int row_stride) {
    if constexpr (COUNT == 1 && ROWS_PER_LANE == 1) {
        first[threadIdx.x % 4 * row_stride + threadIdx.x % 32 / 4] = saturated<T>(v[0][0]);
    } else if constexpr (COUNT > 0) {
        // A matrix's 8 rows come from one tensor, or 4 from each of two.
        constexpr int MATRIX_TENSORS = 8 / ROWS;
        constexpr int MATRICES = (COUNT + MATRIX_TENSORS - 1) / MATRIX_TENSORS;
        constexpr int AT_ONCE = MATRICES > 2 ? 4 : MATRICES;
#pragma unroll
        for (int begin = 0; begin < MATRICES; begin += AT_ONCE) {
            unsigned matrices[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i) {
                const int tensor = ::min(begin + i, MATRICES - 1) * MATRIX_TENSORS;
                const float second = ROWS_PER_LANE == 2 ? v[tensor][ROWS_PER_LANE - 1]
                                                        : v[::min(tensor + 1, COUNT - 1)][0];
                matrices[i] = pack(v[tensor][0], second);
            }
            store_transposed<AT_ONCE>(matrices, [&](int i, int row) {
                const int tensor =
                    ::min(begin + i, MATRICES - 1) * MATRIX_TENSORS + row % MATRIX_TENSORS;
                return first + ::min(tensor, COUNT - 1) * tensor_stride +
                       row / MATRIX_TENSORS * row_stride;
            });
        }
    }
}

// The forward product R h of a warp's 8 units and all rows, over 16 STEPS values of k. Each tile
// has 16 rows of R. Rows 0 to 7 of tile i are gate 2i of the units, rows 8 to 15 gate 2i + 1, so a
// lane receives all gates of its unit.
template <int STEPS> struct ForwardProduct {
    static constexpr int TILES = (Cell::RECURRENT + 1) / 2;
    unsigned weights[TILES][STEPS][4];
    int first;

    // Loads R [Gr, N, D, DEPTH], starting at `first_k`. `r` is the address of this lane's unit in
    // gate 0, or null if there is no such unit.
    __device__ __forceinline__ void load(const T* r, Offset gate_stride, int first_k) {
        const int q = threadIdx.x % 4;
        first = first_k;
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int gate = tile * 2 + half;
                const T* row = r + gate * gate_stride;
                const auto at = [&](int k) {
                    const bool exists = r && gate < Cell::RECURRENT && k < DEPTH;
                    return exists ? *reinterpret_cast<const unsigned*>(row + k) : 0u;
                };
#pragma unroll
                for (int step = 0; step < STEPS; ++step) {
                    weights[tile][step][half] = at(first + step * 16 + q * 2);
                    weights[tile][step][half + 2] = at(first + step * 16 + q * 2 + 8);
                }
            }
        }
    }

    // Multiplies by `h` [ROWS][row_stride]. `out` receives the results of this lane's unit and
    // rows.
    __device__ __forceinline__ void run(
        const T* h, int row_stride,
        float (&out)[ROWS_PER_LANE][at_least_one(Cell::RECURRENT)]) const {
        // If k is long, two accumulators per tile halve the chain of dependent instructions.
        constexpr int CHAINS = STEPS > 8 ? 2 : 1;
        const int lane = threadIdx.x % 32;
        const unsigned address =
            shared_address(h + lane % 8 * ROWS / 8 * row_stride + lane / 8 * 8 + first);
        float sums[TILES][CHAINS][4] = {};
#pragma unroll
        for (int step = 0; step < STEPS; step += 2) {
            unsigned k[4];
            load_matrices<false>(k, address + step * 16 * int(sizeof(T)));
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile)
                mma(sums[tile][0], weights[tile][step], k[0], k[1]);
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile)
                if (step + 1 < STEPS)
                    mma(sums[tile][CHAINS - 1],
                        weights[tile][step + 1 < STEPS ? step + 1 : step], k[2], k[3]);
        }
#pragma unroll
        for (int gate = 0; gate < Cell::RECURRENT; ++gate) {
#pragma unroll
            for (int j = 0; j < ROWS_PER_LANE; ++j) {
                out[j][gate] = sums[gate / 2][0][gate % 2 * 2 + j];
                if (CHAINS == 2) out[j][gate] += sums[gate / 2][CHAINS - 1][gate % 2 * 2 + j];
            }
        }
    }
};

// The backward product R^T dg of TILES tiles of 16 units and all rows, over 32 STEPS values of k.
//
// A lane receives units lane / 4 and lane / 4 + 8 of each tile, for rows 2 (lane % 4) and
// 2 (lane % 4) + 1. With ROWS == 4, lanes whose rows do not exist receive the second unit of the
// other lanes.
template <int TILES, int STEPS> struct BackwardProduct {
    static constexpr int LANE_UNITS = ROWS / 4;  // per tile
    unsigned weights[TILES][STEPS][2][4];
    int first;

    // Loads R transposed, starting at `first_k`. `at(tile, unit, k)` returns the address of a
    // unit's weights at k and k + 1, or null if there are none.
    template <class At> __device__ __forceinline__ void load(At at, int first_k) {
        const int r = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
        first = first_k;
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const auto pair = [&](int k) {
                    const T* p = at(tile, half * 8 + r, k);
                    return p ? *reinterpret_cast<const unsigned*>(p) : 0u;
                };
#pragma unroll
                for (int step = 0; step < STEPS; ++step) {
#pragma unroll
                    for (int j = 0; j < 2; ++j) {
                        const int k = first + step * 32 + j * 16 + q * 2;
                        weights[tile][step][j][half] = pair(k);
                        weights[tile][step][j][half + 2] = pair(k + 8);
                    }
                }
            }
        }
    }

    // Multiplies by `dg` [ROWS][row_stride]. `out` receives the results of this lane's units, for
    // two rows.
    __device__ __forceinline__ void run(const T* dg, int row_stride,
                                        float2 (&out)[TILES][LANE_UNITS]) const {
        const int lane = threadIdx.x % 32;
        const unsigned address =
            shared_address(dg + lane % ROWS * row_stride + lane / 8 * 8 + first);
        constexpr int CHAINS = TILES > 2 ? 1 : 2;
        float d[TILES][CHAINS][4] = {};
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            unsigned k[4];
            load_matrices<false>(k, address + step * 32 * int(sizeof(T)));
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile)
                mma(d[tile][0], weights[tile][step][0], k[0], k[1]);
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile)
                mma(d[tile][CHAINS - 1], weights[tile][step][1], k[2], k[3]);
        }
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            const auto sum = [&](int i) {
                return CHAINS == 2 ? d[tile][0][i] + d[tile][CHAINS - 1][i] : d[tile][0][i];
            };
            const float2 second = {sum(2), sum(3)};
            out[tile][0] = {sum(0), sum(1)};
            if constexpr (LANE_UNITS == 2) {
                out[tile][LANE_UNITS - 1] = second;
            } else {
                const float2 other = {__shfl_xor_sync(~0u, second.x, 2),
                                      __shfl_xor_sync(~0u, second.y, 2)};
                if (lane % 4 >= 2) out[tile][0] = other;
            }
        }
    }
};
