// What the fused kernels compute with where tensors are 16-bit: the tensor cores' m16n8k16.
//
// A computing thread has row lane / 4 of a matrix of 8, and of its columns 2 (lane % 4) and the
// next. Of 4 rows of the batch, each is two columns, and nobody looks at the second.
#pragma once
#include "fused/async_copy.cuh"
#include "fused/block.cuh"

constexpr bool IS_BF16 = T_IS_BF16;
constexpr int ROWS_PER_LANE = ROWS / 4;  // of a computing thread: from lane % 4 * ROWS_PER_LANE

// Two states or gates rounded to T and saturated, the first in the lower half.
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

// d += a b: 16 x 8 from 16 x 16 and 16 x 8.
__device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#define FLASHRNN_MMA(type)                                                                                    \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, " \
        "{%0,%1,%2,%3};"                                                                                      \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                      \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
    if constexpr (IS_BF16)
        FLASHRNN_MMA("bf16");
    else
        FLASHRNN_MMA("f16");
#undef FLASHRNN_MMA
}

// Four 8 x 8 matrices of 16-bit elements: lane l gives the address of row l % 8 of matrix l / 8,
// and gets elements (l / 4, 2 (l % 4)) and the next of each; transposed, elements (2 (l % 4), l /
// 4) and the one below.
template <bool TRANSPOSED> __device__ __forceinline__ void load_matrices(unsigned (&v)[4], unsigned address) {
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

// The reverse of load_matrices<true> for COUNT matrices, 1, 2 or 4: this lane's elements (2 (l %
// 4), l / 4) and the one below of each. `row_of(i, row)` is where row `row` of matrix i goes, which
// every lane can say of any row.
template <int COUNT, class RowOf> __device__ __forceinline__ void store_transposed(const unsigned (&v)[COUNT], RowOf row_of) {
    const int lane = threadIdx.x % 32;
#if __CUDA_ARCH__ >= 900
    const unsigned address = shared_address(row_of(lane / 8 % COUNT, lane % 8));
    if constexpr (COUNT == 1)
        asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(address), "r"(v[0]) : "memory");
    if constexpr (COUNT == 2)
        asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1,%2};" ::"r"(address), "r"(v[0]), "r"(v[1])
                     : "memory");
    if constexpr (COUNT == 4)
        asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(v[0]),
                     "r"(v[1]), "r"(v[2]), "r"(v[3])
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

// Of COUNT tensors this lane's unit and rows. `first` is tensor 0's first row at the warp's first
// unit.
template <int COUNT>
__device__ __forceinline__ void load_tensors(float (&v)[at_least_one(COUNT)][ROWS_PER_LANE], const T* first, int tensor_stride, int row_stride) {
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
            for (int j = 0; j < ROWS_PER_LANE; ++j) v[begin + i][j] = j == 0 ? low(matrices[i]) : high(matrices[i]);
        }
    }
}

// The reverse.
template <int COUNT>
__device__ __forceinline__ void store_tensors(const float (&v)[at_least_one(COUNT)][ROWS_PER_LANE], T* first, int tensor_stride, int row_stride) {
    if constexpr (COUNT == 1 && ROWS_PER_LANE == 1) {
        first[threadIdx.x % 4 * row_stride + threadIdx.x % 32 / 4] = saturated<T>(v[0][0]);
    } else if constexpr (COUNT > 0) {
        // A matrix holds 8 rows: all of a tensor, or the 4 of each of two.
        constexpr int OF_MATRIX = 8 / ROWS, MATRICES = (COUNT + OF_MATRIX - 1) / OF_MATRIX;
        constexpr int AT_ONCE = MATRICES > 2 ? 4 : MATRICES;
#pragma unroll
        for (int begin = 0; begin < MATRICES; begin += AT_ONCE) {
            unsigned matrices[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i) {
                const int tensor = ::min(begin + i, MATRICES - 1) * OF_MATRIX;
                const float second = ROWS_PER_LANE == 2 ? v[tensor][ROWS_PER_LANE - 1] : v[::min(tensor + 1, COUNT - 1)][0];
                matrices[i] = pack(v[tensor][0], second);
            }
            store_transposed<AT_ONCE>(matrices, [&](int i, int row) {
                const int tensor = ::min(begin + i, MATRICES - 1) * OF_MATRIX + row % OF_MATRIX;
                return first + ::min(tensor, COUNT - 1) * tensor_stride + row / OF_MATRIX * row_stride;
            });
        }
    }
}

// The forward product: for 8 units of a warp and all rows, R h. Tile i of 16 rows of R holds gates
// 2i (rows 0 to 7) and 2i + 1 (rows 8 to 15) of the 8 units. STEPS times 16 of k, from `first`.
template <int STEPS> struct ForwardProduct {
    static constexpr int TILES = (Cell::RECURRENT + 1) / 2;
    unsigned weights[TILES][STEPS][4];
    int first;

    // `r` [Gr, N, D, DEPTH], at this lane's unit and gate 0; null where there is no such unit.
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

    // Of this lane's unit and rows, from `h` [ROWS][row_stride].
    __device__ __forceinline__ void run(const T* h, int row_stride, float (&out)[ROWS_PER_LANE][at_least_one(Cell::RECURRENT)]) const {
        // Where k is long, two sums a tile, so that the tensor cores need not wait for one of them.
        constexpr int CHAINS = STEPS > 8 ? 2 : 1;
        const int lane = threadIdx.x % 32;
        const unsigned address = shared_address(h + lane % 8 * ROWS / 8 * row_stride + lane / 8 * 8 + first);
        float sums[TILES][CHAINS][4] = {};
#pragma unroll
        for (int step = 0; step < STEPS; step += 2) {
            unsigned k[4];
            load_matrices<false>(k, address + step * 16 * int(sizeof(T)));
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) mma(sums[tile][0], weights[tile][step], k[0], k[1]);
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile)
                if (step + 1 < STEPS) mma(sums[tile][CHAINS - 1], weights[tile][step + 1 < STEPS ? step + 1 : step], k[2], k[3]);
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

// The backward product: for TILES tiles of 16 units and all rows, R transposed times dg. STEPS
// times 32 of k, from `first`.
//
// A lane gets units lane / 4 and that + 8 of a tile, rows 2 (lane % 4) and the next. Of 4 rows,
// lanes that have none of their own get the second unit of the others.
template <int TILES, int STEPS> struct BackwardProduct {
    static constexpr int OF_LANE = ROWS / 4;  // units of a tile
    unsigned weights[TILES][STEPS][2][4];
    int first;

    // `at(tile, unit, k)` is where R transposed is for a tile's unit, and the k's gate and unit and
    // those of the next k; null for none.
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

    // From `dg` [ROWS][row_stride].
    __device__ __forceinline__ void run(const T* dg, int row_stride, float2 (&out)[TILES][OF_LANE]) const {
        const int lane = threadIdx.x % 32;
        const unsigned address = shared_address(dg + lane % ROWS * row_stride + lane / 8 * 8 + first);
        constexpr int CHAINS = TILES > 2 ? 1 : 2;
        float d[TILES][CHAINS][4] = {};
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            unsigned k[4];
            load_matrices<false>(k, address + step * 32 * int(sizeof(T)));
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) mma(d[tile][0], weights[tile][step][0], k[0], k[1]);
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) mma(d[tile][CHAINS - 1], weights[tile][step][1], k[2], k[3]);
        }
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            const auto sum = [&](int at) { return CHAINS == 2 ? d[tile][0][at] + d[tile][CHAINS - 1][at] : d[tile][0][at]; };
            const float2 second = {sum(2), sum(3)};
            out[tile][0] = {sum(0), sum(1)};
            if constexpr (OF_LANE == 2) {
                out[tile][OF_LANE - 1] = second;
            } else {
                const float2 other = {__shfl_xor_sync(~0u, second.x, 2), __shfl_xor_sync(~0u, second.y, 2)};
                if (lane % 4 >= 2) out[tile][0] = other;
            }
        }
    }
};
