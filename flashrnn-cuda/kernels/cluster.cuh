// Access to the shared memory of the blocks of a cluster (sm_90).
//
// Blocks write to each other's shared memory with `st.async`, which counts the bytes on an mbarrier
// of the receiver.
#pragma once

__device__ __forceinline__ unsigned shared_address(const void* p) {
    return unsigned(__cvta_generic_to_shared(p));
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
__device__ __forceinline__ void send(unsigned to, const float4& v, unsigned barrier) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], "
                 "{%1,%2,%3,%4}, [%5];" ::"r"(to),
                 "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(barrier)
                 : "memory");
}
__device__ __forceinline__ void send(unsigned to, float2 v, unsigned barrier) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1,%2}, "
                 "[%3];" ::"r"(to),
                 "f"(v.x), "f"(v.y), "r"(barrier)
                 : "memory");
}
