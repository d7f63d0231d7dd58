// Synchronisation within a block, and the exchange between the blocks of a cluster.
//
// Blocks write to each other's shared memory with `st.async`, which counts the bytes on an mbarrier
// of the receiver. During the time loop the blocks share no other barrier.
#pragma once
#include "delay.cuh"
#include "fused/async_copy.cuh"
#include "fused/block.cuh"

static_assert(BLOCKS == 1 || __CUDA_ARCH__ >= 900, "clusters need sm_90");

// Synchronises the first `threads` threads of the block.
__device__ __forceinline__ void named_barrier(int threads) {
    asm volatile("bar.sync 1, %0;" ::"r"(threads) : "memory");
}

// An mbarrier, which counts arrivals and bytes. It is in shared memory.
struct Barrier {
    unsigned long long state;

    __device__ __forceinline__ void init(unsigned arrivals) {
        asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(this)), "r"(arrivals)
                     : "memory");
    }

    __device__ __forceinline__ void arrive() {
        asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(
                         shared_address(this))
                     : "memory");
    }

    // Adds `bytes` to the bytes that complete the current phase. Call it before the phase's last
    // arrival.
    __device__ __forceinline__ void expect(unsigned bytes) {
        asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(
                         shared_address(this)),
                     "r"(bytes)
                     : "memory");
    }

    // Waits for the phase of parity `parity` to complete. All its bytes, and all writes before its
    // arrivals, are then visible. Block scope suffices because other blocks write into this block's
    // shared memory; cluster scope would invalidate the L1 cache.
    __device__ __forceinline__ void wait(unsigned parity) {
        asm volatile(
            "{\n"
            ".reg .pred done;\n"
            "again: mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%0], %1;\n"
            "@!done bra again;\n"
            "}" ::"r"(shared_address(this)),
            "r"(parity)
            : "memory");
    }
};

__device__ __forceinline__ unsigned block_in_cluster() {
    unsigned rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

__device__ __forceinline__ void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
                     : "memory");
}

// Returns the address in block `rank` of the cluster that corresponds to `address` in this block.
__device__ __forceinline__ unsigned address_in(unsigned address, unsigned rank) {
    unsigned remote;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
    return remote;
}

// Sends 16 or 8 bytes to another block of the cluster, and counts them on a barrier there.
__device__ __forceinline__ void send(unsigned to, const uint4& v, unsigned barrier) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], "
                 "{%1,%2,%3,%4}, [%5];" ::"r"(to),
                 "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(barrier)
                 : "memory");
}
__device__ __forceinline__ void send(unsigned to, float2 v, unsigned barrier) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1,%2}, "
                 "[%3];" ::"r"(to),
                 "f"(v.x), "f"(v.y), "r"(barrier)
                 : "memory");
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
