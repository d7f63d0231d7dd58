// The batch rows of a group.
#pragma once
#include "grid/block.cuh"

// The rows that a group computes at the same time.
struct Rows {
    int index[ROWS];  // in the batch, or -1
    int steps;        // of the longest

    // Takes ROWS rows, starting with number `first`, in batch order or, if there are lengths, from
    // the longest to the shortest, so that rows of similar length end together. All threads of the
    // block call this.
    __device__ __forceinline__ void take(const Sizes& sizes, const int* lengths, int first) {
        const int thread = threadIdx.x;
        __syncthreads();
        if (thread < ROWS)
            index[thread] = first + thread < sizes.batch ? first + thread : -1;
        if (thread == 0) steps = sizes.time;
        if (RAGGED && lengths) {
            __syncthreads();
            for (int row = thread; row < sizes.batch; row += THREADS) {
                const int length = Row(sizes, lengths, row).length;
                int rank = 0;
                for (int other = 0; other < sizes.batch; ++other) {
                    const int compared = Row(sizes, lengths, other).length;
                    rank += compared > length || (compared == length && other < row);
                }
                if (rank >= first && rank < first + ROWS) index[rank - first] = row;
                if (rank == first) steps = length;
            }
        }
        __syncthreads();
    }
};

// Returns the token that a step processes in a row. A grid kernel has fewer than 2^31 tokens, so
// that addresses take few instructions.
__device__ __forceinline__ int token_of(const Sizes& sizes, const Row& row, int step) {
    const int position = sizes.reverse && step < row.length ? row.length - 1 - step : step;
    return sizes.time_major ? position * sizes.batch + row.index
                            : row.index * sizes.time + position;
}

// Asks for a cache line that a later step reads.
__device__ __forceinline__ void prefetch(const void* p) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}
constexpr int PREFETCHED = 4;  // steps ahead
