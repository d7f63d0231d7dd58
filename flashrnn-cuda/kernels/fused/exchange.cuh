// What the fused kernels share: copies that are under way while others work, and the exchange
// within a cluster of blocks.
//
// A time step is so short that asking for an option costs more than the option: the kernels are
// compiled without those that are not used. -DRAGGED: there are lengths or resets. -DCLIPS: there
// is a clip, or the recurrent gradient is cut.
#pragma once
#include "call.cuh"

constexpr int CHUNK = 64 / sizeof(T);
constexpr int DEPTH = (HEAD_DIM + CHUNK - 1) / CHUNK * CHUNK;  // of packed R

// -DINTERLEAVED: the gates of a unit lie together in what the forward pass saves, where D is no
// multiple of 16 bytes.

// The number of things in an array, which has at least one.
__host__ __device__ constexpr int at_least_one(int n) { return n < 1 ? 1 : n; }

// With -DBLOCK_BARRIERS a block of a cluster has a barrier beside each mbarrier that it waits for,
// which is all that racecheck knows.
//
// With -DDELAYS a warp waits here now and then, for up to a microsecond: for tests, that what the
// kernels give does not hang on who is first.
__device__ __forceinline__ void delay() {
#if DELAYS
    const unsigned hash = (unsigned(clock64()) ^ blockIdx.x * 2654435761u ^ threadIdx.x / 32 * 40503u) * 2246822519u;
    if (hash >> 29 == 0) __nanosleep(hash >> 19 & 1023);
#endif
}

// A named barrier for the first so many threads.
__device__ __forceinline__ void named_barrier(int threads) { asm volatile("bar.sync 1, %0;" ::"r"(threads) : "memory"); }

__device__ __forceinline__ unsigned shared_address(const void* p) { return unsigned(__cvta_generic_to_shared(p)); }

__device__ __forceinline__ void store_shared(unsigned to, float2 v) {
    asm volatile("st.shared.v2.f32 [%0], {%1,%2};" ::"r"(to), "f"(v.x), "f"(v.y) : "memory");
}

// The i-th element at an address in shared memory.
template <class P> __device__ __forceinline__ P& in_shared(unsigned address, int i = 0) {
    return static_cast<P*>(__cvta_shared_to_generic(address))[i];
}

// What is copied at a time.
template <int BYTES> struct WordOf;
template <> struct WordOf<16> { using Type = uint4; };
template <> struct WordOf<8> { using Type = uint2; };
template <> struct WordOf<4> { using Type = unsigned; };

// Copies 16, 8 or 4 bytes from global to shared memory without waiting.
template <int BYTES> __device__ __forceinline__ void copy_async(unsigned to, const void* from) {
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(BYTES) : "memory");
}

// Copies elements one at a time, wherever they lie.
__device__ __forceinline__ void copy_elements(unsigned to, const T* from, int count) {
    for (int i = 0; i < count; ++i) in_shared<T>(to, i) = from[i];
}

// Copies a word, of which only the first `bytes` are read: what follows them becomes 0.
__device__ __forceinline__ void copy_word_async(unsigned to, const void* from, unsigned bytes) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// Loads two bytes from shared memory where `holds`, else 0, without a branch.
__device__ __forceinline__ unsigned short load_half_if(bool holds, unsigned from) {
    unsigned short v = 0;
    asm volatile("{.reg .pred p;\nsetp.ne.u32 p, %2, 0;\n@p ld.shared.u16 %0, [%1];}"
                 : "+h"(v)
                 : "r"(from), "r"(unsigned(holds))
                 : "memory");
    return v;
}

// Stores to global memory where `holds`, without a branch.
__device__ __forceinline__ void store_if(bool holds, unsigned* to, unsigned v) {
    asm volatile("{.reg .pred p;\nsetp.ne.u32 p, %0, 0;\n@p st.global.u32 [%1], %2;}" ::"r"(unsigned(holds)), "l"(to), "r"(v)
                 : "memory");
}
__device__ __forceinline__ void store_if(bool holds, unsigned short* to, unsigned short v) {
    asm volatile("{.reg .pred p;\nsetp.ne.u32 p, %0, 0;\n@p st.global.u16 [%1], %2;}" ::"r"(unsigned(holds)), "l"(to), "h"(v)
                 : "memory");
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
    // Waits until the phase of this parity is over: all arrivals and bytes of it are there, and
    // visible. (What the others send lies in this block's shared memory, so its scope is the block:
    // a wider one would throw away the first-level cache.)
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
