//! 512-bit vectors: AVX-512 F, BW, DQ and VL.

use std::arch::x86_64::*;

use flashrnn_core::{Real, bf16, f16};

use super::math::{self, Constants, FloatBits};
use super::registers::{intrinsic, real_functions, register};
use super::vector::{Simd, SimdTask, Storage};

/// 16 lanes of f32.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct F32x16(__m512);

/// 8 lanes of f64.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct F64x8(__m512d);

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn run_avx512<V, K: SimdTask<V>>(task: K) {
    // SAFETY: guaranteed by the caller.
    unsafe { task.run() }
}

register!(
    F32x16, f32, lanes: 16, panel: 4, pairs: true, vectorize: run_avx512,
    _mm512_add_ps _mm512_sub_ps _mm512_mul_ps _mm512_div_ps _mm512_xor_ps
    _mm512_fmadd_ps _mm512_set1_ps _mm512_loadu_ps _mm512_storeu_ps
);

register!(
    F64x8, f64, lanes: 8, panel: 4, pairs: true, vectorize: run_avx512,
    _mm512_add_pd _mm512_sub_pd _mm512_mul_pd _mm512_div_pd _mm512_xor_pd
    _mm512_fmadd_pd _mm512_set1_pd _mm512_loadu_pd _mm512_storeu_pd
);

macro_rules! real {
    ($v:ident, $scalar:ty, $mask:ty, $sqrt:ident $max:ident $min:ident $abs:ident $cmp:ident
     $blend:ident $round:ident $scale:ident $ternary:ident $from_int:ident $to_int:ident
     $set_int:ident, $sign:expr) => {
        impl Real for $v {
            type Mask = $mask;
            real_functions!($scalar, $sqrt $max $min);
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
        }

        impl FloatBits for $v {
            type Exponent = Self;
            #[inline(always)]
            fn exponent_of_exp(self) -> (Self, Self) {
                const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
                let n = self * Self::lit(std::f64::consts::LOG2_E);
                let n = intrinsic!(Self($round::<NEAREST>(n.0)));
                (n, n)
            }
            #[inline(always)]
            fn scale(self, n: Self) -> Self {
                intrinsic!(Self($scale(self.0, n.0)))
            }
            // Here 2^n rounds to 0, as e^x does.
            const UNDERFLOW: f64 = <$scalar as Constants>::MIN;
            #[inline(always)]
            fn power_of_two(n: Self) -> Self {
                Self::lit(1.0).scale(n)
            }
            #[inline(always)]
            fn copysign(self, sign: Self) -> Self {
                // Selects bits of the second operand where the third is set, and of the first
                // elsewhere.
                intrinsic!(Self($from_int($ternary::<0xd8>(
                    $to_int(self.0),
                    $to_int(sign.0),
                    $set_int($sign)
                ))))
            }
        }
    };
}

real!(
    F32x16, f32, __mmask16, _mm512_sqrt_ps _mm512_max_ps _mm512_min_ps _mm512_abs_ps
    _mm512_cmp_ps_mask _mm512_mask_blend_ps _mm512_roundscale_ps _mm512_scalef_ps
    _mm512_ternarylogic_epi32 _mm512_castsi512_ps _mm512_castps_si512 _mm512_set1_epi32, i32::MIN
);

real!(
    F64x8, f64, __mmask8, _mm512_sqrt_pd _mm512_max_pd _mm512_min_pd _mm512_abs_pd
    _mm512_cmp_pd_mask _mm512_mask_blend_pd _mm512_roundscale_pd _mm512_scalef_pd
    _mm512_ternarylogic_epi64 _mm512_castsi512_pd _mm512_castpd_si512 _mm512_set1_epi64, i64::MIN
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
        // Rounds to nearest, ties to even: adds half a unit in the last place, minus one bit if the
        // last bit kept is even.
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
