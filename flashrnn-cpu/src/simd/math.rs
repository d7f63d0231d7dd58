//! exp, tanh and ln(1 + exp(-|x|)) of vectors.
//!
//! ```text
//! e^x = 2^n (1 + p)          n = round(x / ln 2), r = x - n ln 2, |r| <= ln(2) / 2
//!                            p = e^r - 1 = r + r² q(r)
//! tanh x = -u / (u + 2)      u = e^{-2|x|} - 1 = 2^n p + (2^n - 1), accurate for small x too
//! ln(1 + e) = 2 atanh(s / 2) = s (1 + s² a(s²))
//!                            s = 2 e / (2 + e) <= 2/3
//! ```
//!
//! Flushing subnormal intermediate results to zero does not change a result that is a normal
//! number. q and a are Chebyshev interpolants of degree 4 and 3 for f32 (relative errors 8e-9 and
//! 2e-8) and 10 and 9 for f64 (2e-19 and 5e-18). Tests bound the error of every function by a few
//! units in the last place.

use super::vector::Simd;

/// Operations on the exponent and sign of a vector's numbers.
pub(super) trait FloatBits: Simd {
    /// The representation of an integer n that [`FloatBits::scale`] takes.
    type Exponent: Copy;
    /// Returns the integer nearest to `self / ln 2`, which is at most 2000 in magnitude, as a
    /// number and as an exponent.
    fn exponent_of_exp(self) -> (Self, Self::Exponent);
    /// Returns `self * 2^n`, with the rounding, overflow and underflow of a product.
    fn scale(self, n: Self::Exponent) -> Self;
    /// An x for whose exponent [`power_of_two`](FloatBits::power_of_two) returns 0.
    const UNDERFLOW: f64;
    /// Returns `2^n` for n from the exponent of [`UNDERFLOW`](FloatBits::UNDERFLOW) to 127. Results
    /// below the smallest normal number may be 0.
    fn power_of_two(n: Self::Exponent) -> Self;
    fn copysign(self, sign: Self) -> Self;
}

/// The constants of f32 or f64.
pub(super) trait Constants {
    /// Below `MIN`, e^x rounds to 0. Above `MAX`, it rounds to infinity.
    const MIN: f64;
    const MAX: f64;
    /// ln 2 as a sum whose first term has trailing zero bits, so that its product with n is exact.
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

/// Returns n and p of `e^x = 2^n (1 + p)`.
#[inline(always)]
fn exp_parts<V: FloatBits>(x: V) -> (V::Exponent, V)
where
    V::Scalar: Constants,
{
    let (n, exponent) = x.exponent_of_exp();
    let [high, low] = V::Scalar::LN_2;
    let r = n.mul_add(V::lit(-low), n.mul_add(V::lit(-high), x));
    (exponent, (r * r).mul_add(polynomial(r, V::Scalar::Q), r))
}

#[inline(always)]
pub(super) fn exp<V: FloatBits>(x: V) -> V
where
    V::Scalar: Constants,
{
    let (n, p) = exp_parts(x.clamp_min(V::lit(V::Scalar::MIN)).clamp_max(V::lit(V::Scalar::MAX)));
    (p + V::lit(1.0)).scale(n)
}

/// Returns `e = e^{-2|x|}`, or 0 if it is below the smallest normal number, and `e - 1`.
#[inline(always)]
fn tanh_parts<V: FloatBits>(x: V) -> (V, V)
where
    V::Scalar: Constants,
{
    let (n, p) = exp_parts((x.abs() * V::lit(-2.0)).clamp_min(V::lit(V::UNDERFLOW)));
    let power = V::power_of_two(n);
    (p.mul_add(power, power), p.mul_add(power, power - V::lit(1.0)))
}

#[inline(always)]
pub(super) fn tanh<V: FloatBits>(x: V) -> V
where
    V::Scalar: Constants,
{
    let (_, u) = tanh_parts(x);
    (u / (u + V::lit(2.0))).copysign(x)
}

/// Returns tanh and its slope `4 e / (1 + e)²`.
#[inline(always)]
pub(super) fn tanh_and_slope<V: FloatBits>(x: V) -> (V, V)
where
    V::Scalar: Constants,
{
    let (e, u) = tanh_parts(x);
    let r = V::lit(1.0) / (u + V::lit(2.0));
    ((u * r).copysign(x), V::lit(4.0) * e * r * r)
}

#[inline(always)]
pub(super) fn softplus_neg_abs<V: FloatBits>(x: V) -> V
where
    V::Scalar: Constants,
{
    let e = exp(-x.abs());
    let s = (e + e) / (e + V::lit(2.0));
    let y = s * s;
    s * y.mul_add(polynomial(y, V::Scalar::A), V::lit(1.0))
}
