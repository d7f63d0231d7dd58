// Access to shared memory by address, and asynchronous copies into it (`cp.async`).
#pragma once
#include "cluster.cuh"
#include "element.cuh"

// Returns element `i` of the array at `address` in shared memory.
template <class P> __device__ __forceinline__ P& in_shared(unsigned address, int i = 0) {
    return static_cast<P*>(__cvta_shared_to_generic(address))[i];
}

__device__ __forceinline__ void store_shared(unsigned to, float2 v) {
    asm volatile("st.shared.v2.f32 [%0], {%1,%2};" ::"r"(to), "f"(v.x), "f"(v.y) : "memory");
}

// The register type that holds BYTES bytes.
template <int BYTES> struct WordOf;
template <> struct WordOf<16> { using Type = uint4; };
template <> struct WordOf<8> { using Type = uint2; };
template <> struct WordOf<4> { using Type = unsigned; };

// Starts copying 16, 8 or 4 bytes from global to shared memory.
template <int BYTES> __device__ __forceinline__ void copy_async(unsigned to, const void* from) {
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(BYTES)
                     : "memory");
}

// Starts copying the first `bytes` bytes of a 4-byte word. The others are not read and become 0.
__device__ __forceinline__ void copy_word_async(unsigned to, const void* from, unsigned bytes) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(bytes)
                 : "memory");
}

// Copies elements one by one, at any alignment. Returns when they have been copied.
__device__ __forceinline__ void copy_elements(unsigned to, const T* from, int count) {
    for (int i = 0; i < count; ++i) in_shared<T>(to, i) = from[i];
}

__device__ __forceinline__ void end_copy_group() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most PENDING of this thread's copy groups are in flight.
template <int PENDING> __device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Loads two bytes from shared memory if `condition`, otherwise returns 0. Predicated, not a branch.
__device__ __forceinline__ unsigned short load_half_if(bool condition, unsigned from) {
    unsigned short v = 0;
    asm volatile("{.reg .pred p;\nsetp.ne.u32 p, %2, 0;\n@p ld.shared.u16 %0, [%1];}"
                 : "+h"(v)
                 : "r"(from), "r"(unsigned(condition))
                 : "memory");
    return v;
}

// Stores to global memory if `condition`. Predicated, not a branch.
__device__ __forceinline__ void store_if(bool condition, unsigned* to, unsigned v) {
    asm volatile("{.reg .pred p;\nsetp.ne.u32 p, %0, 0;\n@p st.global.u32 [%1], %2;}" ::"r"(
                     unsigned(condition)),
                 "l"(to), "r"(v)
                 : "memory");
}
__device__ __forceinline__ void store_if(bool condition, unsigned short* to, unsigned short v) {
    asm volatile("{.reg .pred p;\nsetp.ne.u32 p, %0, 0;\n@p st.global.u16 [%1], %2;}" ::"r"(
                     unsigned(condition)),
                 "l"(to), "h"(v)
                 : "memory");
}
