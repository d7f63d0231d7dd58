// The arithmetic of the fused kernels for f32 tensors: multiply-adds. The functions and structs are
// those of tensor_cores.cuh, and assign units and rows to the same lanes. The four lanes with the
// same lane / 4 divide k, taking 4 elements in turn.
#pragma once
#include "fused/block.cuh"

// Batch rows per compute thread. The first is lane % 4 * ROWS_PER_LANE.
constexpr int ROWS_PER_LANE = ROWS / 4;

// Reduce-scatters four sets of N sums over groups of four lanes. Lane q receives the totals of
// v[q], added in the same order in every lane.
template <int N>
__device__ __forceinline__ void scatter_sums(const float (&v)[4][N], float (&out)[N]) {
    const bool upper = threadIdx.x & 2, odd = threadIdx.x & 1;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        float two[2];
#pragma unroll
        for (int j = 0; j < 2; ++j)
            two[j] = (upper ? v[2 + j][i] : v[j][i]) +
                     __shfl_xor_sync(~0u, upper ? v[j][i] : v[2 + j][i], 2);
        out[i] = (odd ? two[1] : two[0]) + __shfl_xor_sync(~0u, odd ? two[0] : two[1], 1);
    }
}

__device__ __forceinline__ float dot(float sum, const float4& a, const float4& b) {
    return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

template <int COUNT>
__device__ __forceinline__ void load_tensors(float (&v)[at_least_one(COUNT)][ROWS_PER_LANE],
                                             const T* first, int tensor_stride, int row_stride) {
    const int r = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
#pragma unroll
        for (int j = 0; j < ROWS_PER_LANE; ++j)
            v[i][j] = first[i * tensor_stride + (q * ROWS_PER_LANE + j) * row_stride + r];
    }
}

template <int COUNT>
__device__ __forceinline__ void store_tensors(
    const float (&v)[at_least_one(COUNT)][ROWS_PER_LANE], T* first, int tensor_stride,
    int row_stride) {
    const int r = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
#pragma unroll
        for (int j = 0; j < ROWS_PER_LANE; ++j)
            first[i * tensor_stride + (q * ROWS_PER_LANE + j) * row_stride + r] = v[i][j];
    }
}

template <int STEPS> struct ForwardProduct {
    float4 weights[at_least_one(Cell::RECURRENT)][STEPS];
    int first;

    __device__ __forceinline__ void load(const T* r, Offset gate_stride, int first_k) {
        first = first_k + threadIdx.x % 4 * 4;
#pragma unroll
        for (int gate = 0; gate < Cell::RECURRENT; ++gate) {
#pragma unroll
            for (int step = 0; step < STEPS; ++step) {
                const int k = first + step * 16;
                weights[gate][step] =
                    r && k < DEPTH ? *reinterpret_cast<const float4*>(r + gate * gate_stride + k)
                                   : float4{0, 0, 0, 0};
            }
        }
    }

    __device__ __forceinline__ void run(
        const T* h, int row_stride,
        float (&out)[ROWS_PER_LANE][at_least_one(Cell::RECURRENT)]) const {
        constexpr int N = ROWS_PER_LANE * Cell::RECURRENT;
        float sums[4][at_least_one(N)] = {}, own[at_least_one(N)];
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
#pragma unroll
            for (int row = 0; row < ROWS; ++row) {
                const float4 k =
                    *reinterpret_cast<const float4*>(h + row * row_stride + first + step * 16);
#pragma unroll
                for (int gate = 0; gate < Cell::RECURRENT; ++gate) {
                    float& sum = sums[row / ROWS_PER_LANE]
                                     [row % ROWS_PER_LANE * Cell::RECURRENT + gate];
                    sum = dot(sum, weights[gate][step], k);
                }
            }
        }
        scatter_sums(sums, own);
#pragma unroll
        for (int i = 0; i < N; ++i) out[i / Cell::RECURRENT][i % Cell::RECURRENT] = own[i];
    }
};

template <int TILES, int STEPS> struct BackwardProduct {
    static constexpr int LANE_UNITS = ROWS / 4;  // per tile
    float4 weights[TILES][STEPS * 2][2];
    int first;

    template <class At> __device__ __forceinline__ void load(At at, int first_k) {
        const int r = threadIdx.x % 32 / 4;
        first = first_k + threadIdx.x % 4 * 4;
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
#pragma unroll
                for (int step = 0; step < STEPS * 2; ++step) {
                    const T* p = at(tile, half * 8 + r, first + step * 16);
                    weights[tile][step][half] =
                        p ? *reinterpret_cast<const float4*>(p) : float4{0, 0, 0, 0};
                }
            }
        }
    }

    __device__ __forceinline__ void run(const T* dg, int row_stride,
                                        float2 (&out)[TILES][LANE_UNITS]) const {
        constexpr int N = TILES * LANE_UNITS * 2;
        // For each of the four lanes: the sums of its units of each tile, for two rows.
        float sums[4][N] = {}, own[N];
#pragma unroll
        for (int step = 0; step < STEPS * 2; ++step) {
#pragma unroll
            for (int row = 0; row < ROWS; ++row) {
                const float4 k =
                    *reinterpret_cast<const float4*>(dg + row * row_stride + first + step * 16);
#pragma unroll
                for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const int lane = LANE_UNITS == 2 ? row / 2 : half * 2 + row / 2;
                        const int unit = tile * LANE_UNITS + half % LANE_UNITS;
                        float& sum = sums[lane][unit * 2 + row % 2];
                        sum = dot(sum, weights[tile][step][half], k);
                    }
                }
            }
        }
        scatter_sums(sums, own);
#pragma unroll
        for (int i = 0; i < N / 2; ++i)
            out[i / LANE_UNITS][i % LANE_UNITS] = {own[i * 2], own[i * 2 + 1]};
    }
};
