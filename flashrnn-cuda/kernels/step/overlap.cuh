// Programmatic dependent launch (sm_90 and later): the next kernel of the stream starts while this
// one runs, and fetches what does not depend on it, until it waits. Elsewhere the kernels simply
// follow each other.
#pragma once

// Lets the next kernel start. What this kernel writes is visible to it after its own wait.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Waits until every kernel before has ended. Every block calls this: otherwise a kernel could end
// before the one before it.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Reads past the first-level cache, which may hold what an earlier kernel left there: for all that
// goes from step to step.
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
