// The element types. T, set by `-DELEMENT=`, is the type of wx and the states. W, set by
// `-DWEIGHT=`, is the type of R and b.
//
// Arithmetic is in f32: loads widen, and stores round to nearest, ties to even. States and gates
// saturate: a value beyond the range of a 16-bit T, including infinity, becomes the largest finite
// number. Gradients and weights become infinite instead.
#pragma once

struct f16 {
    unsigned short bits;
};

struct bf16 {
    unsigned short bits;
};

__device__ __forceinline__ float widen(float v) { return v; }

__device__ __forceinline__ float widen(f16 v) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(v.bits));
    return wide;
}

__device__ __forceinline__ float widen(bf16 v) { return __uint_as_float(unsigned(v.bits) << 16); }

// Rounds `wide` to the type of `v`.
__device__ __forceinline__ void narrow(float wide, float& v) { v = wide; }

__device__ __forceinline__ void narrow(float wide, f16& v) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(v.bits) : "f"(wide));
}

__device__ __forceinline__ void narrow(float wide, bf16& v) {
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(v.bits) : "f"(wide));
}

// Rounds a state or gate to the type of `v` and saturates. Like `narrow`, this is one instruction.
__device__ __forceinline__ void saturate(float wide, float& v) { v = wide; }

__device__ __forceinline__ void saturate(float wide, f16& v) {
    asm("cvt.rn.satfinite.f16.f32 %0, %1;" : "=h"(v.bits) : "f"(wide));
}

__device__ __forceinline__ void saturate(float wide, bf16& v) {
    asm("cvt.rn.satfinite.bf16.f32 %0, %1;" : "=h"(v.bits) : "f"(wide));
}

using T = ELEMENT;

template <class Out> __device__ __forceinline__ Out rounded(float wide) {
    Out v;
    narrow(wide, v);
    return v;
}

template <class Out> __device__ __forceinline__ Out saturated(float wide) {
    Out v;
    saturate(wide, v);
    return v;
}

// Offsets are 64-bit because a tensor may have more than 2^31 elements.
using Offset = long long;
