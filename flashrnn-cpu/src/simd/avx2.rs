//! 256-bit vectors: AVX2, FMA and F16C.

use std::arch::x86_64::*;

use flashrnn_core::{Real, bf16, f16};

use super::math::{self, FloatBits};
use super::registers::{intrinsic, real_functions, register};
use super::vector::{Simd, SimdTask, Storage};

/// 8 lanes of f32.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct F32x8(__m256);

/// 4 lanes of f64.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct F64x4(__m256d);

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run_avx2<V, K: SimdTask<V>>(task: K) {
    // SAFETY: guaranteed by the caller.
    unsafe { task.run() }
}

register!(
    F32x8, f32, lanes: 8, panel: 2, pairs: false, vectorize: run_avx2,
    _mm256_add_ps _mm256_sub_ps _mm256_mul_ps _mm256_div_ps _mm256_xor_ps
    _mm256_fmadd_ps _mm256_set1_ps _mm256_loadu_ps _mm256_storeu_ps
);

register!(
    F64x4, f64, lanes: 4, panel: 2, pairs: false, vectorize: run_avx2,
    _mm256_add_pd _mm256_sub_pd _mm256_mul_pd _mm256_div_pd _mm256_xor_pd
    _mm256_fmadd_pd _mm256_set1_pd _mm256_loadu_pd _mm256_storeu_pd
);

macro_rules! real {
    ($v:ident, $scalar:ty, $register:ty, $sqrt:ident $max:ident $min:ident $cmp:ident
     $blend:ident $and:ident $andnot:ident $or:ident $set1:ident) => {
        impl Real for $v {
            type Mask = $register;
            real_functions!($scalar, $sqrt $max $min);
            #[inline(always)]
            fn abs(self) -> Self {
                intrinsic!(Self($andnot($set1(-0.0), self.0)))
            }
            #[inline(always)]
            fn gt(self, other: Self) -> $register {
                intrinsic!($cmp::<_CMP_GT_OQ>(self.0, other.0))
            }
            #[inline(always)]
            fn select(mask: $register, if_true: Self, if_false: Self) -> Self {
                intrinsic!(Self($blend(if_false.0, if_true.0, mask)))
            }
        }

        impl $v {
            #[inline(always)]
            fn with_sign_of(self, sign: Self) -> Self {
                intrinsic!({
                    let mask = $set1(-0.0);
                    Self($or($andnot(mask, self.0), $and(mask, sign.0)))
                })
            }
        }
    };
}

real!(
    F32x8, f32, __m256, _mm256_sqrt_ps _mm256_max_ps _mm256_min_ps _mm256_cmp_ps
    _mm256_blendv_ps _mm256_and_ps _mm256_andnot_ps _mm256_or_ps _mm256_set1_ps
);

real!(
    F64x4, f64, __m256d, _mm256_sqrt_pd _mm256_max_pd _mm256_min_pd _mm256_cmp_pd
    _mm256_blendv_pd _mm256_and_pd _mm256_andnot_pd _mm256_or_pd _mm256_set1_pd
);

impl FloatBits for F32x8 {
    /// The integer n in the exponent bits of each lane.
    type Exponent = __m256i;
    #[inline(always)]
    fn exponent_of_exp(self) -> (Self, __m256i) {
        // Adding 1.5 · 2^23 rounds to an integer and leaves it in the lowest bits.
        let shift = Self::lit(12_582_912.0);
        let shifted = self.mul_add(Self::lit(std::f64::consts::LOG2_E), shift);
        let n = intrinsic!(_mm256_slli_epi32::<23>(_mm256_castps_si256(shifted.0)));
        (shifted - shift, n)
    }
    #[inline(always)]
    fn scale(self, n: __m256i) -> Self {
        // 2^n may be out of range; 2^(n/2) is not.
        let (a, b) = intrinsic!({
            let half = _mm256_and_si256(_mm256_srai_epi32::<1>(n), _mm256_set1_epi32(-1 << 23));
            (half, _mm256_sub_epi32(n, half))
        });
        self * Self::power_of_two(a) * Self::power_of_two(b)
    }
    /// -127 ln 2, at which the biased exponent is 0.
    const UNDERFLOW: f64 = -127.0 * std::f64::consts::LN_2;
    #[inline(always)]
    fn power_of_two(n: __m256i) -> Self {
        intrinsic!(Self(_mm256_castsi256_ps(_mm256_add_epi32(n, _mm256_set1_epi32(127 << 23)))))
    }
    #[inline(always)]
    fn copysign(self, sign: Self) -> Self {
        self.with_sign_of(sign)
    }
}

impl FloatBits for F64x4 {
    type Exponent = Self;
    #[inline(always)]
    fn exponent_of_exp(self) -> (Self, Self) {
        let n = (self * Self::lit(std::f64::consts::LOG2_E)).round();
        (n, n)
    }
    #[inline(always)]
    fn scale(self, n: Self) -> Self {
        // As for f32, but n is halved in floating point, because AVX2 has no arithmetic shift of
        // 64-bit integers.
        let half = (n * Self::lit(0.5)).round();
        self * Self::power_of_two(half) * Self::power_of_two(n - half)
    }
    /// -1023 ln 2, at which the biased exponent is 0.
    const UNDERFLOW: f64 = -1023.0 * std::f64::consts::LN_2;
    #[inline(always)]
    fn power_of_two(n: Self) -> Self {
        // Adding 1.5 · 2^52 leaves the biased exponent, an integer, in the lowest bits.
        const SHIFT: f64 = 6_755_399_441_055_744.0 + 1023.0;
        intrinsic!({
            let shifted = _mm256_add_pd(n.0, _mm256_set1_pd(SHIFT));
            Self(_mm256_castsi256_pd(_mm256_slli_epi64::<52>(_mm256_castpd_si256(shifted))))
        })
    }
    #[inline(always)]
    fn copysign(self, sign: Self) -> Self {
        self.with_sign_of(sign)
    }
}

impl F64x4 {
    #[inline(always)]
    fn round(self) -> Self {
        intrinsic!(Self(_mm256_round_pd::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(
            self.0
        )))
    }
}

impl Storage<f16> for F32x8 {
    #[inline(always)]
    unsafe fn load(p: *const f16) -> Self {
        intrinsic!(Self(_mm256_cvtph_ps(_mm_loadu_si128(p.cast()))))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f16) {
        intrinsic!(_mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)))
    }
}

impl Storage<bf16> for F32x8 {
    #[inline(always)]
    unsafe fn load(p: *const bf16) -> Self {
        intrinsic!({
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits)))
        })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut bf16) {
        // Rounds to nearest, ties to even: adds half a unit in the last place, minus one bit if the
        // last bit kept is even.
        intrinsic!({
            let bits = _mm256_castps_si256(self.0);
            let high = _mm256_srli_epi32::<16>(bits);
            let odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
            let sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            let quiet_nan = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
            let is_nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(self.0, self.0));
            let result = _mm256_blendv_epi8(_mm256_srli_epi32::<16>(sum), quiet_nan, is_nan);
            let packed = _mm256_packus_epi32(result, result);
            let ordered = _mm256_permute4x64_epi64::<0b00_00_10_00>(packed);
            _mm_storeu_si128(p.cast(), _mm256_castsi256_si128(ordered))
        })
    }
}
