//! 256-bit vectors.

use std::arch::x86_64::*;

use flashrnn_core::{Real, bf16, f16};

use super::math::{self, Bits, intrinsic, real_functions, vector};
use super::{Op, Simd, Storage};

/// 8 numbers of f32.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct F32x8(__m256);

/// 4 numbers of f64.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct F64x4(__m256d);

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn with_avx2<O: Op>(op: O) -> O::Output {
    // SAFETY: as promised by the caller.
    unsafe { op.run() }
}

macro_rules! avx2 {
    ($v:ident, $scalar:ty, $lanes:expr, $register:ty,
     $add:ident $sub:ident $mul:ident $div:ident $sqrt:ident $set1:ident $fmadd:ident $cmp:ident
     $blend:ident $xor:ident $and:ident $andnot:ident $or:ident $load:ident $store:ident $max:ident $min:ident) => {
        vector!($v, $scalar, $lanes, add: $add, sub: $sub, mul: $mul, div: $div);

        impl std::ops::Neg for $v {
            type Output = Self;
            #[inline(always)]
            fn neg(self) -> Self {
                intrinsic!(Self($xor(self.0, $set1(-0.0))))
            }
        }

        impl Real for $v {
            type Mask = $register;
            real_functions!($scalar);
            #[inline(always)]
            fn sqrt(self) -> Self {
                intrinsic!(Self($sqrt(self.0)))
            }
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
            // The instructions return their second operand where either is NaN, as `Real` asks of
            // `self`.
            #[inline(always)]
            fn clamp_min(self, bound: Self) -> Self {
                intrinsic!(Self($max(bound.0, self.0)))
            }
            #[inline(always)]
            fn clamp_max(self, bound: Self) -> Self {
                intrinsic!(Self($min(bound.0, self.0)))
            }
        }

        impl Simd for $v {
            type Scalar = $scalar;
            const LANES: usize = $lanes;
            const PANEL: usize = 2;
            const ROWS: usize = 6;
            const PAIRS: bool = false;
            #[inline(always)]
            unsafe fn vectorize<O: Op>(op: O) -> O::Output {
                // SAFETY: as promised by the caller.
                unsafe { with_avx2(op) }
            }
            #[inline(always)]
            fn splat(v: $scalar) -> Self {
                intrinsic!(Self($set1(v)))
            }
            #[inline(always)]
            fn mul_add(self, b: Self, c: Self) -> Self {
                intrinsic!(Self($fmadd(self.0, b.0, c.0)))
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

        impl Storage<$scalar> for $v {
            #[inline(always)]
            unsafe fn load(p: *const $scalar) -> Self {
                intrinsic!(Self($load(p)))
            }
            #[inline(always)]
            unsafe fn store(self, p: *mut $scalar) {
                intrinsic!($store(p, self.0))
            }
            #[inline(always)]
            fn rounded(self) -> Self {
                self
            }
        }
    };
}

avx2!(
    F32x8, f32, 8, __m256,
    _mm256_add_ps _mm256_sub_ps _mm256_mul_ps _mm256_div_ps _mm256_sqrt_ps _mm256_set1_ps _mm256_fmadd_ps
    _mm256_cmp_ps _mm256_blendv_ps _mm256_xor_ps _mm256_and_ps _mm256_andnot_ps _mm256_or_ps
    _mm256_loadu_ps _mm256_storeu_ps _mm256_max_ps _mm256_min_ps
);

avx2!(
    F64x4, f64, 4, __m256d,
    _mm256_add_pd _mm256_sub_pd _mm256_mul_pd _mm256_div_pd _mm256_sqrt_pd _mm256_set1_pd _mm256_fmadd_pd
    _mm256_cmp_pd _mm256_blendv_pd _mm256_xor_pd _mm256_and_pd _mm256_andnot_pd _mm256_or_pd
    _mm256_loadu_pd _mm256_storeu_pd _mm256_max_pd _mm256_min_pd
);

impl Bits for F32x8 {
    /// n in the bits of the exponent.
    type Exponent = __m256i;
    #[inline(always)]
    fn doublings(self) -> (Self, __m256i) {
        // Adding 1.5 · 2^23 rounds to a whole number and leaves it in the lowest bits.
        let shift = Self::lit(12_582_912.0);
        let shifted = self.mul_add(Self::lit(std::f64::consts::LOG2_E), shift);
        let n = intrinsic!(_mm256_slli_epi32::<23>(_mm256_castps_si256(shifted.0)));
        (shifted - shift, n)
    }
    #[inline(always)]
    fn scale(self, n: __m256i) -> Self {
        // 2^n may not be a normal number, the powers of its halves are.
        let (a, b) = intrinsic!({
            let half = _mm256_and_si256(_mm256_srai_epi32::<1>(n), _mm256_set1_epi32(-1 << 23));
            (half, _mm256_sub_epi32(n, half))
        });
        self * Self::power_of_two(a) * Self::power_of_two(b)
    }
    /// -127 ln 2: the exponent's bits are 0.
    const VANISHES: f64 = -127.0 * std::f64::consts::LN_2;
    #[inline(always)]
    fn power_of_two(n: __m256i) -> Self {
        intrinsic!(Self(_mm256_castsi256_ps(_mm256_add_epi32(n, _mm256_set1_epi32(127 << 23)))))
    }
    #[inline(always)]
    fn copysign(self, sign: Self) -> Self {
        self.with_sign_of(sign)
    }
}

impl Bits for F64x4 {
    type Exponent = Self;
    #[inline(always)]
    fn doublings(self) -> (Self, Self) {
        let n = (self * Self::lit(std::f64::consts::LOG2_E)).round();
        (n, n)
    }
    #[inline(always)]
    fn scale(self, n: Self) -> Self {
        // As above; there is no shift of 64 bits that keeps the sign.
        let half = (n * Self::lit(0.5)).round();
        self * Self::power_of_two(half) * Self::power_of_two(n - half)
    }
    /// -1023 ln 2, as above.
    const VANISHES: f64 = -1023.0 * std::f64::consts::LN_2;
    #[inline(always)]
    fn power_of_two(n: Self) -> Self {
        // Adding 1.5 · 2^52 leaves the biased exponent, a whole number, in the lowest bits.
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
        // To nearest, ties to even, by adding just under half a unit, or half where the last bit
        // kept is odd.
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
