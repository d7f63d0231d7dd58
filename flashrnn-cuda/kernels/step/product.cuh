// The matrix product of one time step, for the block's units and batch rows:
//
//     out[g][unit][row] = sum over k of weights[g][unit][k] x[row][k]        g < PER_UNIT
//
// In the forward pass, PER_UNIT is Gr, x is h, and k runs over the units of the head. In the
// backward pass, PER_UNIT is 1, x is dg, and k runs over gates and units. In memory k is the
// innermost index of both operands, in chunks of 64 bytes padded with zeros.
//
// The warps divide k: warp w multiplies chunks w, w + WARPS, ... of all outputs, and the partial
// sums are added in shared memory. The weights of the first chunks are loaded into registers before
// the previous step has ended (`fetch`).
//
// With q = lane % 4 and r = lane / 4, a lane holds the same outputs as in the tensor cores' m16n8
// accumulators: (r, 2q), (r, 2q + 1), (r + 8, 2q) and (r + 8, 2q + 1) of each tile of 16 weight
// rows and 8 batch rows. The order of k within a chunk is arbitrary as long as both operands share
// it, so lane q loads 16 contiguous bytes: elements q V to q V + V - 1 of the chunk.
#pragma once
#include "step/overlap.cuh"
#include "step/tile.cuh"

constexpr int CHUNK = 64 / sizeof(T);   // elements of k in a chunk
constexpr int VECTOR = 16 / sizeof(T);  // elements in a 16-byte load

template <class P> __device__ __forceinline__ uint4 load_weights(const P* p) {
    return __ldg(reinterpret_cast<const uint4*>(p));
}

template <class P> __device__ __forceinline__ uint4 load_x(const P* p) {
    return load_exchanged(reinterpret_cast<const uint4*>(p));
}

// The arithmetic, set by `-DMULTIPLY=`: tensor cores for BF16, F16 and TF32 (f32 rounded to TF32),
// multiply-adds for F32.
enum Multiply { BF16, F16, TF32, F32 };

// Rounds an f32 to the nearest TF32. Both are passed as bits.
__device__ __forceinline__ unsigned to_tf32(unsigned bits) {
    unsigned v;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(v) : "f"(__uint_as_float(bits)));
    return v;
}

// Adds the product of a and b to d, in one tensor core instruction.
template <Multiply HOW>
__device__ __forceinline__ void mma(float (&d)[4], unsigned a0, unsigned a1, unsigned a2,
                                    unsigned a3, unsigned b0, unsigned b1) {
#define FLASHRNN_MMA(shape_and_types)                                                 \
    asm volatile("mma.sync.aligned." shape_and_types                                  \
                 " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"             \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                     \
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1))
    if constexpr (HOW == BF16) FLASHRNN_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
    if constexpr (HOW == F16) FLASHRNN_MMA("m16n8k16.row.col.f32.f16.f16.f32");
    if constexpr (HOW == TF32) FLASHRNN_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
#undef FLASHRNN_MMA
}

// The sums of one tile of 16 weight rows and 8 batch rows.
template <Multiply HOW> struct Accumulator {
    float d[4] = {};

    // Adds a chunk. `a0` and `a1` are 16 bytes of weight rows r and r + 8, and `x` is 16 bytes of
    // batch row r.
    __device__ __forceinline__ void add(const uint4& a0, const uint4& a1, const uint4& x) {
        if constexpr (HOW == TF32) {
            mma<HOW>(d, to_tf32(a0.x), to_tf32(a1.x), to_tf32(a0.y), to_tf32(a1.y),
                     to_tf32(x.x), to_tf32(x.y));
            mma<HOW>(d, to_tf32(a0.z), to_tf32(a1.z), to_tf32(a0.w), to_tf32(a1.w),
                     to_tf32(x.z), to_tf32(x.w));
        } else {
            mma<HOW>(d, a0.x, a1.x, a0.y, a1.y, x.x, x.y);
            mma<HOW>(d, a0.z, a1.z, a0.w, a1.w, x.z, x.w);
        }
    }

    __device__ __forceinline__ void finish(float (&out)[4]) const {
#pragma unroll
        for (int i = 0; i < 4; ++i) out[i] = d[i];
    }
};

// Without tensor cores, a lane sums its part of k for weight rows r and r + 8 and all 8 batch rows,
// whose x it receives from the other lanes. `finish` adds the sums of the four lanes of
// each r.
template <> struct Accumulator<F32> {
    float d[2][8] = {};

    static __device__ __forceinline__ float dot(float sum, const uint4& a, const float (&x)[4]) {
        sum = fmaf(__uint_as_float(a.x), x[0], sum);
        sum = fmaf(__uint_as_float(a.y), x[1], sum);
        sum = fmaf(__uint_as_float(a.z), x[2], sum);
        return fmaf(__uint_as_float(a.w), x[3], sum);
    }

    __device__ __forceinline__ void add(const uint4& a0, const uint4& a1, const uint4& x) {
        const int q = threadIdx.x % 4;
#pragma unroll
        for (int row = 0; row < 8; ++row) {
            const unsigned bits[4] = {x.x, x.y, x.z, x.w};
            float part[4];
#pragma unroll
            for (int i = 0; i < 4; ++i)
                part[i] = __uint_as_float(__shfl_sync(~0u, bits[i], row * 4 + q));
            d[0][row] = dot(d[0][row], a0, part);
            d[1][row] = dot(d[1][row], a1, part);
        }
    }

    __device__ __forceinline__ void finish(float (&out)[4]) const {
        const int q = threadIdx.x % 4;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int row = 0; row < 8; ++row) {
                float sum = d[half][row];
                sum += __shfl_xor_sync(~0u, sum, 1);
                sum += __shfl_xor_sync(~0u, sum, 2);
                if (row / 2 == q) out[half * 2 + row % 2] = sum;
            }
        }
    }
};

template <int PER_UNIT> struct Product {
    static constexpr int TILES = (PER_UNIT * UNITS + 15) / 16;  // of 16 weight rows
    static constexpr int COLUMNS = ROWS / 8;                    // tiles of 8 batch rows
    // The number of chunks to fetch ahead, 1 to 4: as many as fit about 96 registers together with
    // the accumulators, weights and x.
    static constexpr int SUM_REGISTERS =
        TILES * COLUMNS * int(sizeof(Accumulator<MULTIPLY>) / sizeof(float));
    static constexpr int FIT = (96 - SUM_REGISTERS) / (TILES * 8 + COLUMNS * 4);
    static constexpr int AHEAD = FIT < 1 ? 1 : FIT > 4 ? 4 : FIT;
    // Floats per row of `Sums`, padded so that the lanes of a store use different banks.
    static constexpr int STRIDE = ROWS == 8 ? 8 : ROWS + 8;

    struct Sums {
        float of[WARPS][TILES * 16][STRIDE];
    };

    int chunks, warp, r, q;
    // The addresses of this lane's part of chunk 0; null if there is no such row.
    const T* weights[TILES][2];  // rows r and r + 8 of each tile
    const T* x[COLUMNS];         // batch row r of each tile
    uint4 ahead[AHEAD][TILES][2];

    // `weights_of(gate, unit)` and `x_of(row)` return the addresses of rows. They are called for
    // units below `units` and rows below `rows`.
    template <class WeightsOf, class XOf>
    __device__ __forceinline__ Product(int depth, int units, int rows, WeightsOf weights_of,
                                       XOf x_of)
        : chunks(depth / CHUNK), warp(threadIdx.x / 32), r(threadIdx.x % 32 / 4),
          q(threadIdx.x % 4) {
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int m = tile * 16 + half * 8 + r;
                const int gate = m / UNITS, unit = m % UNITS;
                const bool exists = gate < PER_UNIT && unit < units;
                weights[tile][half] = exists ? weights_of(gate, unit) + q * VECTOR : nullptr;
            }
        }
#pragma unroll
        for (int column = 0; column < COLUMNS; ++column) {
            const int row = column * 8 + r;
            x[column] = row < rows ? x_of(row) + q * VECTOR : nullptr;
        }
    }

    // Loads the weights of the first chunks, which do not depend on the previous step.
    __device__ __forceinline__ void fetch() { fetch(warp); }

    // Multiplies, and leaves the sums of each warp in shared memory. The caller must synchronise.
    __device__ __forceinline__ void run(Sums& sums) {
        Accumulator<MULTIPLY> accumulator[TILES][COLUMNS];
        for (int first = warp; first < chunks; first += WARPS * AHEAD) {
            if (first != warp) fetch(first);
            uint4 vectors[AHEAD][COLUMNS];
#pragma unroll
            for (int i = 0; i < AHEAD; ++i) {
                const int chunk = first + i * WARPS;
#pragma unroll
                for (int column = 0; column < COLUMNS; ++column)
                    vectors[i][column] = x[column] && chunk < chunks
                                             ? load_x(x[column] + chunk * CHUNK)
                                             : uint4{0, 0, 0, 0};
            }
#pragma unroll
            for (int i = 0; i < AHEAD; ++i) {
                if (first + i * WARPS >= chunks) break;
#pragma unroll
                for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
                    for (int column = 0; column < COLUMNS; ++column)
                        accumulator[tile][column].add(ahead[i][tile][0], ahead[i][tile][1],
                                                      vectors[i][column]);
                }
            }
        }
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
            for (int column = 0; column < COLUMNS; ++column) {
                float out[4];
                accumulator[tile][column].finish(out);
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    sums.of[warp][tile * 16 + r + i / 2 * 8][column * 8 + q * 2 + i % 2] = out[i];
            }
        }
    }

    // Returns one output: the sum over all warps in their order, whatever their number of chunks.
    static __device__ __forceinline__ float sum(const Sums& sums, int gate, int unit, int row) {
        float total = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) total += sums.of[w][gate * UNITS + unit][row];
        return total;
    }

private:
    // Loads the weights of AHEAD chunks of this warp, starting at chunk `first`.
    __device__ __forceinline__ void fetch(int first) {
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            const int chunk = first + i * WARPS;
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const T* row = weights[tile][half];
                    ahead[i][tile][half] = row && chunk < chunks
                                               ? load_weights(row + chunk * CHUNK)
                                               : uint4{0, 0, 0, 0};
                }
            }
        }
    }
};
