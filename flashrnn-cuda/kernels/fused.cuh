// What the fused kernels share: tensor cores on 16-bit factors, copies that are under way while others work, and the
// exchange within a cluster of blocks.
//
// A time step is so short that asking for an option costs more than the option: the kernels are compiled without those that are
// not used. -DRAGGED: there are lengths or resets. -DCLIPS: there is a clip, or the recurrent gradient is cut.
#pragma once
#include "call.cuh"

static_assert(sizeof(T) == 2, "the fused kernels multiply 16-bit factors");

constexpr bool IS_BF16 = T_IS_BF16;

__device__ __forceinline__ unsigned shared_address(const void* p) { return unsigned(__cvta_generic_to_shared(p)); }

// Two values rounded to T, the first in the lower half.
__device__ __forceinline__ unsigned pack(float low, float high) {
    unsigned v;
    if constexpr (IS_BF16)
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
    else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
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

// Four 8 x 8 matrices of 16-bit elements: lane l gives the address of row l % 8 of matrix l / 8, and gets elements
// (l / 4, 2 (l % 4)) and the next of each; transposed, elements (2 (l % 4), l / 4) and the one below.
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

// The reverse of load_matrices<true> for COUNT matrices, 1, 2 or 4: this lane's elements (2 (l % 4), l / 4) and the one below of
// each. `row_of(i, row)` is where row `row` of matrix i goes, which every lane can say of any row.
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

__device__ __forceinline__ void store_shared(unsigned to, float2 v) {
    asm volatile("st.shared.v2.f32 [%0], {%1,%2};" ::"r"(to), "f"(v.x), "f"(v.y) : "memory");
}

// Copies 16 bytes from global to shared memory without waiting.
__device__ __forceinline__ void copy_async(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

__device__ __forceinline__ void end_copy_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING of this thread's groups of copies are under way.
template <int PENDING> __device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// A barrier in shared memory that counts arrivals and bytes.
struct Barrier {
    unsigned long long state;

    __device__ __forceinline__ void init(unsigned arrivals) {
        asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(this)), "r"(arrivals) : "memory");
    }
    __device__ __forceinline__ void arrive() {
        asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(this)) : "memory");
    }
#if __CUDA_ARCH__ >= 900
    // This phase also waits for so many bytes more. To be called before the last arrival.
    __device__ __forceinline__ void expect(unsigned bytes) {
        asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)), "r"(bytes)
                     : "memory");
    }
    // Waits until the phase of this parity is over: all arrivals and bytes of it are there, and visible. (What the others send
    // lies in this block's shared memory, so its scope is the block: a wider one would throw away the first-level cache.)
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
#endif
};

#if __CUDA_ARCH__ >= 900

__device__ __forceinline__ unsigned block_in_cluster() {
    unsigned rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

__device__ __forceinline__ void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// The address in block `rank` of the cluster that `address` is in this one.
__device__ __forceinline__ unsigned address_in(unsigned address, unsigned rank) {
    unsigned there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    return there;
}

// Sends 16 or 8 bytes to another block of the cluster, counted on a barrier there.
__device__ __forceinline__ void send(unsigned to, const uint4& v, unsigned barrier) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(to),
                 "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(barrier)
                 : "memory");
}

__device__ __forceinline__ void send(unsigned to, float2 v, unsigned barrier) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1,%2}, [%3];" ::"r"(to), "f"(v.x),
                 "f"(v.y), "r"(barrier)
                 : "memory");
}

#endif
