// Programmatic dependent launch (sm_90 and later). The next kernel on the stream starts while this
// one runs, and before it waits, it loads all inputs that do not depend on this one. On older
// devices, kernels run one after the other.
#pragma once

// Allows the next kernel to start. It must wait before it reads what this kernel writes.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Waits until all previous kernels have ended. Every block must call it; otherwise a kernel could
// end before its predecessor.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Loads from L2, bypassing the L1 cache, which may hold a line from before an earlier kernel wrote
// it. Used for everything that one step passes to the next.
__device__ __forceinline__ float load_exchanged(const float* p) {
    float v;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(v) : "l"(p) : "memory");
    return v;
}

__device__ __forceinline__ uint4 load_exchanged(const uint4* p) {
    uint4 v;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}
