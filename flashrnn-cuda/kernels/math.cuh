// The functions that a printed cell calls, as defined by the Rust trait `Real`.
//
// By default they are CUDA's functions without fast-math. Their errors are at most 2 units in the
// last place, and they support subnormals, infinities and NaN. With `-DMATH=`, which the fused
// kernels of 16-bit tensors set, they are hardware approximations. HARDWARE_F16 has errors near
// 1e-6. HARDWARE_BF16 has a tanh with errors up to 5e-4, an eighth of bf16's rounding error, at
// half the cost.
//
// The slopes of tanh and sigmoid are accurate to a few units in the last place in both tails
// (HARDWARE_F16: relative errors of 1e-5). HARDWARE_BF16 derives the slopes from tanh, with
// absolute errors of 1e-3 and 2.5e-4, so in the tails they are noise of that size, then 0.
#pragma once

namespace real {

__device__ __forceinline__ float inf() { return __int_as_float(0x7f800000); }
__device__ __forceinline__ float nan() { return __int_as_float(0x7fc00000); }

__device__ __forceinline__ float ln(float x) { return logf(x); }
__device__ __forceinline__ float sqrt(float x) { return sqrtf(x); }
__device__ __forceinline__ float abs(float x) { return fabsf(x); }

#if defined(MATH)

enum Math { HARDWARE_F16, HARDWARE_BF16 };

__device__ __forceinline__ float exp(float x) { return __expf(x); }
__device__ __forceinline__ float softplus_neg_abs(float x) {
    return __logf(1.0f + __expf(-fabsf(x)));
}

__device__ __forceinline__ float reciprocal(float x) {
    float v;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(v) : "f"(x));
    return v;
}

__device__ __forceinline__ float tanh(float x) {
    if constexpr (MATH == HARDWARE_BF16) {
        float v;
        asm("tanh.approx.f32 %0, %1;" : "=f"(v) : "f"(x));
        return v;
    }
    // (1 - e) / (1 + e) with e = exp(-2|x|)
    const float e = __expf(-2.0f * fabsf(x));
    return copysignf((1.0f - e) * reciprocal(1.0f + e), x);
}

__device__ __forceinline__ float sigmoid(float x) {
    if constexpr (MATH == HARDWARE_BF16) return fmaf(0.5f, tanh(0.5f * x), 0.5f);
    return reciprocal(1.0f + __expf(-x));
}

__device__ __forceinline__ float sigmoid_slope(float x) {
    if constexpr (MATH == HARDWARE_BF16) {
        const float t = tanh(0.5f * x);
        return fmaf(-0.25f * t, t, 0.25f);
    }
    const float e = __expf(-fabsf(x));
    const float r = reciprocal(1.0f + e);
    return e * r * r;
}

__device__ __forceinline__ float tanh_slope(float x) {
    if constexpr (MATH == HARDWARE_BF16) {
        const float t = tanh(x);
        return fmaf(-t, t, 1.0f);
    }
    return 4.0f * sigmoid_slope(x + x);
}

#else

__device__ __forceinline__ float exp(float x) { return expf(x); }
__device__ __forceinline__ float tanh(float x) { return tanhf(x); }

// ln(1 + exp(-|x|))
__device__ __forceinline__ float softplus_neg_abs(float x) { return log1pf(expf(-fabsf(x))); }

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// sigmoid(x) (1 - sigmoid(x)) as e / (1 + e)^2 with e = exp(-|x|), accurate even if sigmoid(x) is
// near 1.
__device__ __forceinline__ float sigmoid_slope(float x) {
    const float e = expf(-fabsf(x));
    const float r = 1.0f / (1.0f + e);
    return e * r * r;
}

// 1 - tanh(x)^2, accurate even if tanh(x) is near 1.
__device__ __forceinline__ float tanh_slope(float x) { return 4.0f * sigmoid_slope(x + x); }

#endif

// Unlike fmaxf and fminf, max and min return NaN if x is NaN. They return x if `bound` is NaN.
__device__ __forceinline__ float max(float x, float bound) { return bound > x ? bound : x; }
__device__ __forceinline__ float min(float x, float bound) { return x > bound ? bound : x; }

// Clamps x to -bound..bound. NaN stays NaN.
__device__ __forceinline__ float clamp(float x, float bound) { return min(max(x, -bound), bound); }

}  // namespace real
