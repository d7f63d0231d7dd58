// The sums of the products of a cluster's blocks.
//
// Every block of a cluster computes a part of the sums of all units of the cluster. It sends to
// each block, itself included, the part for that block's units. The receiver adds the parts in the
// order of the ranks.
#pragma once
#include "cluster.cuh"
#include "delay.cuh"
#include "grid/product.cuh"

// The parts that a block receives, if there are clusters. Those of product p are in buffer p % 2.
//
// Phase p / 2 of barrier p % 2 completes when the parts of product p have arrived, and the block's
// own warps have read the sums that they sent. Two buffers suffice: a block sends the parts of
// product p + 2 after it has received those of p + 1, and every block of the cluster has read the
// parts of p before it sends those of p + 1. A block may end before the others of its cluster,
// because it has then received all that they send to it. After the watchdog has ended the launch's
// waits for words, blocks still wait for parts, which all of them still send.
struct Parts {
    Barrier full[2];
    alignas(16) float parts[2][CLUSTER][CLUSTER > 1 ? ROWS : 1][CLUSTER > 1 ? UNITS : 4];

    // Initialises the barriers. All threads call this. Afterwards the cluster's blocks may send.
    __device__ __forceinline__ void open() {
        if constexpr (CLUSTER == 1) return;
        if (threadIdx.x == 0) {
            full[0].init(WARPS);
            full[1].init(WARPS);
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        }
        cluster_barrier();
    }

    // Sends the sums of product number `product`, and waits for the parts of this block. All
    // threads call this, after all warps have written their sums.
    template <class Product>
    __device__ __forceinline__ void exchange(const Block& block,
                                             const typename Product::Partials& partials,
                                             unsigned product) {
        if constexpr (CLUSTER > 1) {
            // A thread sends VECTOR adjacent units of a row at a time.
            constexpr int VECTOR = UNITS % 4 == 0 ? 4 : 2, VECTORS = CLUSTER * UNITS / VECTOR;
            const unsigned buffer = product % 2;
            const unsigned barrier = shared_address(&full[buffer]);
            if (threadIdx.x == 0) full[buffer].expect(sizeof(parts[0]));
#pragma unroll
            for (int first = 0; first < ROWS * VECTORS; first += THREADS) {
                const int i = first + threadIdx.x;
                if (ROWS * VECTORS % THREADS != 0 && i >= ROWS * VECTORS) break;
                const int row = i / VECTORS, unit = i % VECTORS * VECTOR, to = unit / UNITS;
                float sums[VECTOR];
                Product::add_up(partials, row, unit, sums);
                const unsigned here =
                    shared_address(&parts[buffer][block.rank_in_cluster][row][unit % UNITS]);
                const unsigned there = address_in(here, to);
                if constexpr (VECTOR == 4)
                    send(there, float4{sums[0], sums[1], sums[2], sums[3]}, there - here + barrier);
                else
                    send(there, float2{sums[0], sums[1]}, there - here + barrier);
            }
            delay();
            __syncwarp();
            if (threadIdx.x % 32 == 0) full[buffer].arrive();
            full[buffer].wait(product / 2 % 2);
            // racecheck does not understand mbarriers, so its builds add a block barrier.
            if (BLOCK_BARRIERS) __syncthreads();
            delay();
        }
    }

    // Returns the sum of product number `product` for a unit of this block.
    template <class Product>
    __device__ __forceinline__ float sum(const typename Product::Partials& partials, int row,
                                         int unit, unsigned product) const {
        float sum[1] = {};
        if constexpr (CLUSTER == 1) {
            Product::add_up(partials, row, unit, sum);
        } else {
#pragma unroll
            for (int rank = 0; rank < CLUSTER; ++rank)
                sum[0] += parts[product % 2][rank][row][unit];
        }
        return sum[0];
    }
};
