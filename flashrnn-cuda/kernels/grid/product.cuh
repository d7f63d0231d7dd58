// The product of the block's part of R and what the group exchanges, on the tensor cores. k is
// divided among the warps.
#pragma once
#include "grid/words.cuh"
#include "mma.cuh"

// The product of OUTPUTS rows of weights and VALUES values per unit of the head.
//
// The order of k is that of the exchange, so a received word needs no rearranging across lanes:
// lane l receives word l % 4 of each chunk, and its three pairs are the lane's registers of operand
// B for one and a half steps.
template <int VALUES, int OUTPUTS> struct Product {
    using Words = Exchange<VALUES>;
    using Receiver = typename Words::Receiver;
    static constexpr int TILES = (OUTPUTS + 15) / 16;
    static constexpr int STEPS = (3 * Words::CHUNKS_PER_WARP + 1) / 2;
    static constexpr int IN_REGISTERS = REGISTER_STEPS < STEPS ? REGISTER_STEPS : STEPS;
    static constexpr int IN_SHARED = STEPS - IN_REGISTERS;
    // Independent sums, because a chain of dependent products is slow.
    static constexpr int CHAINS = TILES * COLUMN_TILES >= 4 ? 1 : TILES * COLUMN_TILES == 1 ? 3 : 2;
    static constexpr int PAIRS = (Words::CHUNKS_PER_WARP + 1) / 2;  // of chunks: three steps

    // The partial sums of each warp. The row length puts the lanes of a store in different banks.
    static constexpr int ROW_SUMS = TILES * 16 + 4;
    using Partials = float[WARPS][ROWS][ROW_SUMS];
    // The weights that do not fit the registers, as lanes load them.
    using SharedWeights =
        uint4[WARPS][IN_SHARED < 1 ? 1 : IN_SHARED][TILES][IN_SHARED < 1 ? 1 : 32];

    unsigned weights[TILES][IN_REGISTERS][4];

    // Loads the weights from packed R, for values from blocks of rank `rank` in their clusters.
    // `row(output)` returns the index in `r` of an output's row, or -1 if there is none.
    // `column(value, unit)` returns the index, within a row, of the weight of a value of a unit of
    // the head. Rows are padded with zeros to DEPTH units.
    template <class RowOf, class ColumnOf>
    __device__ __forceinline__ void load(SharedWeights& shared, const T* r, int rank, RowOf row,
                                         ColumnOf column) {
        const int lane = threadIdx.x % 32, q = lane % 4, warp = threadIdx.x / 32;
        int rows[TILES][2];
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int output = tile * 16 + half * 8 + lane / 4;
                rows[tile][half] = output < OUTPUTS ? row(output) : -1;
            }
        }
        // Returns the column of pair i of this lane's k, or -1.
        const auto column_of = [&](int i) -> int {
            const int word = (i / 3 * WARPS + warp) * 4 + q;
            const int number = word % Words::WORDS * WORD_VALUES + i % 3 * 2;
            const int value = number / UNITS, sender = word / Words::WORDS * CLUSTER + rank;
            const int unit = sender * UNITS + number % UNITS;
            const bool exists = i / 3 < Words::CHUNKS_PER_WARP && word < Words::ALL_WORDS &&
                                value < VALUES && unit < DEPTH;
            return exists ? column(value, unit) : -1;
        };
        // Volatile, because the compiler would otherwise compute all addresses first and spill
        // them.
        const auto pair = [&](int row, int column) {
            unsigned v = 0;
            asm volatile("{.reg .pred p;\nsetp.ge.s32 p, %2, 0;\n@p ld.global.u32 %0, [%1];}"
                         : "+r"(v)
                         : "l"(r + row + column), "r"(row | column));
            return v;
        };
        const auto load_step = [&](int step, int tile, unsigned (&a)[4]) {
            const int columns[2] = {column_of(step * 2), column_of(step * 2 + 1)};
#pragma unroll
            for (int j = 0; j < 4; ++j) a[j] = pair(rows[tile][j % 2], columns[j / 2]);
        };
#pragma unroll 1
        for (int step = IN_REGISTERS; step < STEPS; ++step) {
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) {
                unsigned a[4];
                load_step(step, tile, a);
                shared[warp][step - IN_REGISTERS][tile][lane] = {a[0], a[1], a[2], a[3]};
            }
        }
#pragma unroll
        for (int step = 0; step < IN_REGISTERS; ++step) {
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) load_step(step, tile, weights[tile][step]);
        }
    }

    // Receives exchange number `exchange` and writes this warp's sums. `since` is the clock at the
    // block's last barrier.
    __device__ __forceinline__ void run(const Words& words, const SharedWeights& shared,
                                        unsigned exchange, unsigned since,
                                        Watchdog& watchdog, Partials& partials) const {
        Receiver receiver(words, exchange, since, watchdog);
        float sums[TILES][COLUMN_TILES][CHAINS][4] = {};
#pragma unroll
        for (int load = 0; load < receiver.SLOTS; ++load) receiver.begin(load);
#pragma unroll
        for (int pair = 0; pair < PAIRS; ++pair) {
            // Loads serve one chunk or a multiple of two.
#pragma unroll
            for (int chunk = pair * 2; chunk < pair * 2 + 2; ++chunk)
                if (chunk % Words::SPREAD == 0 && chunk / Words::SPREAD < Words::LOADS)
                    receiver.wait(chunk / Words::SPREAD);
            multiply(pair, receiver, shared, sums);
#pragma unroll
            for (int chunk = pair * 2; chunk < pair * 2 + 2; ++chunk)
                if ((chunk + 1) % Words::SPREAD == 0 &&
                    chunk / Words::SPREAD + receiver.SLOTS < Words::LOADS)
                    receiver.begin(chunk / Words::SPREAD + receiver.SLOTS);
        }
        store(sums, partials[threadIdx.x / 32]);
    }

    // Adds the products of a pair of chunks.
    __device__ __forceinline__ void multiply(int pair, const Receiver& receiver,
                                             const SharedWeights& shared,
                                             float (&sums)[TILES][COLUMN_TILES][CHAINS][4]) const {
#pragma unroll
        for (int i = 0; i < 3; ++i) {
            const int step = pair * 3 + i;
            if (step >= STEPS) continue;
            unsigned k[COLUMN_TILES][2];
#pragma unroll
            for (int tile = 0; tile < COLUMN_TILES; ++tile) {
#pragma unroll
                for (int j = 0; j < 2; ++j)
                    k[tile][j] = receiver.pair((step * 2 + j) / 3, tile, (step * 2 + j) % 3);
            }
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) {
                unsigned a[4];
                if (step < IN_REGISTERS) {
#pragma unroll
                    for (int j = 0; j < 4; ++j)
                        a[j] = weights[tile][step < IN_REGISTERS ? step : 0][j];
                } else {
                    const int in_shared = step < IN_REGISTERS ? 0 : step - IN_REGISTERS;
                    const uint4 w = shared[threadIdx.x / 32][in_shared][tile][threadIdx.x % 32];
                    a[0] = w.x, a[1] = w.y, a[2] = w.z, a[3] = w.w;
                }
#pragma unroll
                for (int column_tile = 0; column_tile < COLUMN_TILES; ++column_tile)
                    mma(sums[tile][column_tile][i % CHAINS], a, k[column_tile][0],
                        k[column_tile][1]);
            }
        }
    }

    __device__ __forceinline__ void store(
        const float (&sums)[TILES][COLUMN_TILES][CHAINS][4],
        float (&to)[ROWS][ROW_SUMS]) const {
        const int lane = threadIdx.x % 32, q = lane % 4;
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
            for (int column_tile = 0; column_tile < COLUMN_TILES; ++column_tile) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    float sum = sums[tile][column_tile][0][i];
#pragma unroll
                    for (int chain = 1; chain < CHAINS; ++chain)
                        sum += sums[tile][column_tile][chain][i];
                    const int row = column_tile * 8 + q * 2 + i % 2;
                    if (ROWS % 8 == 0 || row < ROWS)
                        to[row][tile * 16 + i / 2 * 8 + lane / 4] = sum;
                }
            }
        }
    }

    // Adds up the warps' sums of COUNT consecutive outputs of a row. `first` is a multiple of
    // COUNT.
    template <int COUNT>
    static __device__ __forceinline__ void add_up(const Partials& partials, int row, int first,
                                                  float (&sums)[COUNT]) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) sums[i] = 0.0f;
#pragma unroll
        for (int warp = 0; warp < WARPS; ++warp) {
            const float* from = &partials[warp][row][first];
            if constexpr (COUNT % 4 == 0) {
#pragma unroll
                for (int i = 0; i < COUNT; i += 4) {
                    const float4 v = *reinterpret_cast<const float4*>(from + i);
                    sums[i] += v.x, sums[i + 1] += v.y, sums[i + 2] += v.z, sums[i + 3] += v.w;
                }
            } else {
#pragma unroll
                for (int i = 0; i < COUNT; ++i) sums[i] += from[i];
            }
        }
    }
};
