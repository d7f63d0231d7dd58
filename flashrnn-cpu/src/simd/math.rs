//! exp, tanh and ln(1 + exp(-|x|)) for vectors, which the standard library has for single numbers
//! only.
//!
//! ```text
//! e^x = 2^n (1 + p)     n = round(x / ln 2), r = x - n ln 2, p = e^r - 1 = r + r² q(r),  |r| <= ln(2) / 2
//! tanh x = -u / (u + 2)  u = e^{-2|x|} - 1 = 2^n p + (2^n - 1): no cancellation, so small x keep their accuracy
//! ln(1 + e) = 2 atanh(s / 2) = s (1 + s² a(s²))    s = 2 e / (2 + e) <= 2/3
//! ```
//!
//! Results that are normal numbers do not change where subnormal numbers are flushed to zero on the
//! way. q and a are Chebyshev interpolants of degree 4 and 3 for f32 (relative error 8e-9 and 2e-8)
//! and 10 and 9 for f64 (2e-19 and 5e-18). The tests hold every function to a few units in the last
//! place.

use super::Simd;

/// What the functions need of a vector beyond [`Simd`].
pub(super) trait Bits: Simd {
    /// A whole number n as [`Bits::scale`] wants it.
    type Exponent: Copy;
    /// The whole number nearest to `self / ln 2`, by its size up to 2000.
    fn doublings(self) -> (Self, Self::Exponent);
    /// `self * 2^n`, with the rounding, overflow and underflow of a product.
    fn scale(self, n: Self::Exponent) -> Self;
    /// An x at whose [`doublings`](Bits::doublings) `power_of_two` is 0.
    const VANISHES: f64;
    /// `2^n` for n from those of [`VANISHES`](Bits::VANISHES) to 127; below the smallest normal
    /// number it may be 0.
    fn power_of_two(n: Self::Exponent) -> Self;
    fn copysign(self, sign: Self) -> Self;
}

/// The constants of a precision.
pub(super) trait Constants {
    /// Below `MIN`, e^x rounds to 0; above `MAX`, to infinity.
    const MIN: f64;
    const MAX: f64;
    /// ln 2 in two parts, the first with trailing zeros, so that its product with n is exact.
    const LN_2: [f64; 2];
    const Q: &'static [f64];
    const A: &'static [f64];
}

impl Constants for f32 {
    const MIN: f64 = -104.0;
    const MAX: f64 = 89.0;
    const LN_2: [f64; 2] = [0.693_145_751_953_125, 1.428_606_820_309_417_2e-6];
    const Q: &'static [f64] = &[
        0.5,
        0.166_665_769_869_877,
        0.041_666_554_617_204_574,
        0.008_363_179_052_722_577,
        0.001_392_618_358_771_349_5,
    ];
    const A: &'static [f64] = &[
        0.083_333_300_420_874_06,
        0.012_502_362_701_534_752,
        0.002_205_985_922_289_881_3,
        0.000_524_443_320_758_538_1,
    ];
}

impl Constants for f64 {
    const MIN: f64 = -746.0;
    const MAX: f64 = 710.0;
    const LN_2: [f64; 2] = [0.693_147_180_369_123_8, 1.908_214_929_270_587_7e-10];
    const Q: &'static [f64] = &[
        0.5,
        0.166_666_666_666_666_7,
        0.041_666_666_666_666_67,
        0.008_333_333_333_326_135,
        0.001_388_888_888_888_374_8,
        0.000_198_412_698_748_206_25,
        2.480_158_732_554_774e-5,
        2.755_725_540_020_642_4e-6,
        2.755_727_364_311_03e-7,
        2.510_521_700_472_074_5e-8,
        2.091_468_696_808_687_7e-9,
    ];
    const A: &'static [f64] = &[
        0.083_333_333_333_333_33,
        0.012_500_000_000_004_558,
        0.002_232_142_856_805_371_8,
        0.000_434_027_787_449_762_97,
        8.877826873111747e-05,
        1.8781213458201444e-05,
        4.063154360856609e-06,
        9.156091926262446e-07,
        1.6786076519288395e-07,
        7.707617574664846e-08,
    ];
}

#[inline(always)]
fn polynomial<V: Simd>(x: V, coefficients: &'static [f64]) -> V {
    let mut sum = V::lit(coefficients[coefficients.len() - 1]);
    for &c in coefficients.iter().rev().skip(1) {
        sum = sum.mul_add(x, V::lit(c));
    }
    sum
}

/// n and p of `e^x = 2^n (1 + p)`.
#[inline(always)]
fn exp_parts<V: Bits>(x: V) -> (V::Exponent, V)
where
    V::Scalar: Constants,
{
    let (n, exponent) = x.doublings();
    let [high, low] = V::Scalar::LN_2;
    let r = n.mul_add(V::lit(-low), n.mul_add(V::lit(-high), x));
    (exponent, (r * r).mul_add(polynomial(r, V::Scalar::Q), r))
}

#[inline(always)]
pub(super) fn exp<V: Bits>(x: V) -> V
where
    V::Scalar: Constants,
{
    let (n, p) = exp_parts(x.clamp_min(V::lit(V::Scalar::MIN)).clamp_max(V::lit(V::Scalar::MAX)));
    (p + V::lit(1.0)).scale(n)
}

/// `e = e^{-2|x|}`, 0 where it is too small to be a normal number, and `e - 1`.
#[inline(always)]
fn tanh_parts<V: Bits>(x: V) -> (V, V)
where
    V::Scalar: Constants,
{
    let (n, p) = exp_parts((x.abs() * V::lit(-2.0)).clamp_min(V::lit(V::VANISHES)));
    let power = V::power_of_two(n);
    (p.mul_add(power, power), p.mul_add(power, power - V::lit(1.0)))
}

#[inline(always)]
pub(super) fn tanh<V: Bits>(x: V) -> V
where
    V::Scalar: Constants,
{
    let (_, u) = tanh_parts(x);
    (u / (u + V::lit(2.0))).copysign(x)
}

/// tanh and its slope, `4 e / (1 + e)²`.
#[inline(always)]
pub(super) fn tanh_and_slope<V: Bits>(x: V) -> (V, V)
where
    V::Scalar: Constants,
{
    let (e, u) = tanh_parts(x);
    let r = V::lit(1.0) / (u + V::lit(2.0));
    ((u * r).copysign(x), V::lit(4.0) * e * r * r)
}

#[inline(always)]
pub(super) fn softplus_neg_abs<V: Bits>(x: V) -> V
where
    V::Scalar: Constants,
{
    let e = exp(-x.abs());
    let s = (e + e) / (e + V::lit(2.0));
    let y = s * s;
    s * y.mul_add(polynomial(y, V::Scalar::A), V::lit(1.0))
}

/// Implements the arithmetic of [`Real`](flashrnn_core::Real) and the functions above for a newtype
/// over a register.
macro_rules! vector {
    ($v:ident, $scalar:ty, $lanes:expr, add: $add:ident, sub: $sub:ident, mul: $mul:ident, div: $div:ident) => {
        vector!(@operator $v, Add, add, $add);
        vector!(@operator $v, Sub, sub, $sub);
        vector!(@operator $v, Mul, mul, $mul);
        vector!(@operator $v, Div, div, $div);

        impl $v {
            /// Applies a function lane by lane: for what is too rare to be worth a polynomial.
            #[inline(always)]
            fn map(self, f: impl Fn($scalar) -> $scalar) -> Self {
                let mut lanes = [<$scalar>::default(); $lanes];
                // SAFETY: the array has as many lanes as the register.
                unsafe {
                    Storage::<$scalar>::store(self, lanes.as_mut_ptr());
                    <Self as Storage<$scalar>>::load(lanes.map(f).as_ptr())
                }
            }
        }
    };
    (@operator $v:ident, $trait:ident, $method:ident, $intrinsic:ident) => {
        impl std::ops::$trait for $v {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                intrinsic!($v($intrinsic(self.0, other.0)))
            }
        }
    };
}

/// An expression of intrinsics.
macro_rules! intrinsic {
    ($e:expr) => {
        // SAFETY: vectors exist only inside `Simd::vectorize`, whose caller has seen that the
        // machine has them; intrinsics that touch memory stand in functions that pass their own
        // demands on.
        unsafe { $e }
    };
}

/// The methods of [`Real`](flashrnn_core::Real) that are the same for every register.
macro_rules! real_functions {
    ($scalar:ty) => {
        #[inline(always)]
        fn lit(v: f64) -> Self {
            Self::splat(v as $scalar)
        }
        #[inline(always)]
        fn exp(self) -> Self {
            math::exp(self)
        }
        #[inline(always)]
        fn ln(self) -> Self {
            self.map(<$scalar>::ln)
        }
        #[inline(always)]
        fn tanh(self) -> Self {
            math::tanh(self)
        }
        #[inline(always)]
        fn tanh_and_slope(self) -> (Self, Self) {
            math::tanh_and_slope(self)
        }
        #[inline(always)]
        fn softplus_neg_abs(self) -> Self {
            math::softplus_neg_abs(self)
        }
    };
}

pub(super) use {intrinsic, real_functions, vector};
