// Synchronisation within a block, and the exchange between the blocks of a cluster.
//
// Blocks write to each other's shared memory (cluster.cuh). During the time loop the blocks share
// no other barrier.
#pragma once
#include "cluster.cuh"
#include "delay.cuh"
#include "fused/async_copy.cuh"
#include "fused/block.cuh"

static_assert(BLOCKS == 1 || __CUDA_ARCH__ >= 900, "clusters need sm_90");

// Synchronises the first `threads` threads of the block.
__device__ __forceinline__ void named_barrier(int threads) {
    asm volatile("bar.sync 1, %0;" ::"r"(threads) : "memory");
}

// The exchange of a double buffer in shared memory, once per step: step n reads buffer n % 2. In a
// cluster, the block's `Shared` has one barrier per buffer, `Barrier full[2]`. Phase n / 2 of
// barrier n % 2 completes when every warp of the block has arrived for step n and all expected
// bytes from the cluster have been received. A single block uses `__syncthreads` instead.

// Initialises the barriers. Afterwards earlier writes to shared memory are visible to the block,
// and the blocks of the cluster may send. Every thread must call it.
template <class Shared> __device__ __forceinline__ void open_exchange(Shared& shared) {
    if constexpr (BLOCKS > 1) {
        if (threadIdx.x == 0) {
            shared.full[0].init(COMPUTE_WARPS + IO_WARPS);
            shared.full[1].init(COMPUTE_WARPS + IO_WARPS);
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        }
        cluster_barrier();
    } else {
        __syncthreads();
    }
}

// Arrives for step `step`: this warp has written what the step reads, and has finished reading what
// the step overwrites. Every warp of the block must call it once per step.
template <class Shared>
__device__ __forceinline__ void arrive_for_step(Shared& shared, unsigned step) {
    delay();
    if constexpr (BLOCKS == 1) return;
    __syncwarp();
    if (threadIdx.x % 32 == 0) shared.full[step % 2].arrive();
}

// Waits until all data that step `step` reads is available. Every warp of the block must call it.
template <class Shared>
__device__ __forceinline__ void wait_for_step(Shared& shared, unsigned step) {
    delay();
    if constexpr (BLOCKS == 1)
        __syncthreads();
    else
        shared.full[step % 2].wait(step / 2 % 2);
    // racecheck does not understand mbarriers, so its builds add a block barrier.
    if (BLOCK_BARRIERS) __syncthreads();
    delay();
}

// Keeps the block alive while other blocks may still send to it. Every thread must call it.
__device__ __forceinline__ void close_exchange() {
    if constexpr (BLOCKS > 1) {
        __syncwarp();
        cluster_barrier();
    }
}
