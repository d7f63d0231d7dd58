//! 512-bit vectors.

use std::arch::x86_64::*;

use flashrnn_core::{Real, bf16, f16};

use super::math::{self, Bits, Constants, intrinsic, real_functions, vector};
use super::{Op, Simd, Storage};

/// 16 numbers of f32.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct F32x16(__m512);

/// 8 numbers of f64.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct F64x8(__m512d);

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn with_avx512<O: Op>(op: O) -> O::Output {
    // SAFETY: as promised by the caller.
    unsafe { op.run() }
}

macro_rules! avx512 {
    ($v:ident, $scalar:ty, $lanes:expr, $register:ty, $mask:ty,
     $add:ident $sub:ident $mul:ident $div:ident $sqrt:ident $abs:ident $set1:ident $fmadd:ident $round:ident
     $scale:ident $cmp:ident $blend:ident $xor:ident $ternary:ident $from_int:ident $to_int:ident $set_int:ident
     $load:ident $store:ident $max:ident $min:ident, $sign:expr) => {
        vector!($v, $scalar, $lanes, add: $add, sub: $sub, mul: $mul, div: $div);

        impl std::ops::Neg for $v {
            type Output = Self;
            #[inline(always)]
            fn neg(self) -> Self {
                intrinsic!(Self($xor(self.0, $set1(-0.0))))
            }
        }

        impl Real for $v {
            type Mask = $mask;
            real_functions!($scalar);
            #[inline(always)]
            fn sqrt(self) -> Self {
                intrinsic!(Self($sqrt(self.0)))
            }
            #[inline(always)]
            fn abs(self) -> Self {
                intrinsic!(Self($abs(self.0)))
            }
            #[inline(always)]
            fn gt(self, other: Self) -> $mask {
                intrinsic!($cmp::<_CMP_GT_OQ>(self.0, other.0))
            }
            #[inline(always)]
            fn select(mask: $mask, if_true: Self, if_false: Self) -> Self {
                intrinsic!(Self($blend(mask, if_false.0, if_true.0)))
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
            const PANEL: usize = 4;
            const ROWS: usize = 6;
            const PAIRS: bool = true;
            #[inline(always)]
            unsafe fn vectorize<O: Op>(op: O) -> O::Output {
                // SAFETY: as promised by the caller.
                unsafe { with_avx512(op) }
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

        impl Bits for $v {
            type Exponent = Self;
            #[inline(always)]
            fn doublings(self) -> (Self, Self) {
                let n = self * Self::lit(std::f64::consts::LOG2_E);
                let n = intrinsic!(Self($round::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(n.0)));
                (n, n)
            }
            #[inline(always)]
            fn scale(self, n: Self) -> Self {
                intrinsic!(Self($scale(self.0, n.0)))
            }
            // 2^n rounds to 0 there, as e^x does.
            const VANISHES: f64 = <$scalar as Constants>::MIN;
            #[inline(always)]
            fn power_of_two(n: Self) -> Self {
                Self::lit(1.0).scale(n)
            }
            #[inline(always)]
            fn copysign(self, sign: Self) -> Self {
                // Bit by bit: where the third operand is set, the second, else the first.
                intrinsic!(Self($from_int($ternary::<0xd8>(
                    $to_int(self.0),
                    $to_int(sign.0),
                    $set_int($sign)
                ))))
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

avx512!(
    F32x16, f32, 16, __m512, __mmask16,
    _mm512_add_ps _mm512_sub_ps _mm512_mul_ps _mm512_div_ps _mm512_sqrt_ps _mm512_abs_ps _mm512_set1_ps
    _mm512_fmadd_ps _mm512_roundscale_ps _mm512_scalef_ps _mm512_cmp_ps_mask _mm512_mask_blend_ps _mm512_xor_ps
    _mm512_ternarylogic_epi32 _mm512_castsi512_ps _mm512_castps_si512 _mm512_set1_epi32 _mm512_loadu_ps
    _mm512_storeu_ps _mm512_max_ps _mm512_min_ps, i32::MIN
);

avx512!(
    F64x8, f64, 8, __m512d, __mmask8,
    _mm512_add_pd _mm512_sub_pd _mm512_mul_pd _mm512_div_pd _mm512_sqrt_pd _mm512_abs_pd _mm512_set1_pd
    _mm512_fmadd_pd _mm512_roundscale_pd _mm512_scalef_pd _mm512_cmp_pd_mask _mm512_mask_blend_pd _mm512_xor_pd
    _mm512_ternarylogic_epi64 _mm512_castsi512_pd _mm512_castpd_si512 _mm512_set1_epi64 _mm512_loadu_pd
    _mm512_storeu_pd _mm512_max_pd _mm512_min_pd, i64::MIN
);

impl Storage<f16> for F32x16 {
    #[inline(always)]
    unsafe fn load(p: *const f16) -> Self {
        intrinsic!(Self(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f16) {
        intrinsic!(_mm256_storeu_si256(
            p.cast(),
            _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)
        ))
    }
}

impl Storage<bf16> for F32x16 {
    #[inline(always)]
    unsafe fn load(p: *const bf16) -> Self {
        intrinsic!({
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)))
        })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut bf16) {
        // To nearest, ties to even, by adding just under half a unit, or half where the last bit
        // kept is odd.
        intrinsic!({
            let bits = _mm512_castps_si512(self.0);
            let high = _mm512_srli_epi32::<16>(bits);
            let odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
            let sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let quiet_nan = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
            let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
            let result = _mm512_mask_mov_epi32(_mm512_srli_epi32::<16>(sum), is_nan, quiet_nan);
            _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(result))
        })
    }
}
