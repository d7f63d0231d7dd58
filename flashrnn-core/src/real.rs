//! The number a cell computes with.
//!
//! A [`Cell`](crate::Cell) is written once, generic over [`Real`]. Instantiated with `f64` it is
//! the reference, with a SIMD vector the CPU kernel, with [`Dual`](crate::Dual) its own derivative,
//! and with a handle into a graph it traces itself. For this reason, no method takes a context:
//! literals belong to no graph. A condition is a value ([`Real::Mask`]) that only [`Real::select`]
//! consumes, so a cell cannot branch.

use std::ops::{Add, Div, Mul, Neg, Sub};

/// A number, a vector of numbers, a dual number, or a node of a traced expression.
///
/// Operations treat NaN, infinities and signed zeros as IEEE 754 does; each implementation states
/// its accuracy.
pub trait Real:
    Copy
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    /// The result of a comparison: one truth value per number.
    type Mask: Copy;

    /// Returns the constant `v`, rounded to this type.
    fn lit(v: f64) -> Self;

    /// Returns e raised to the power of `self`.
    fn exp(self) -> Self;

    /// Returns the natural logarithm.
    fn ln(self) -> Self;

    /// Returns the square root.
    fn sqrt(self) -> Self;

    /// Returns the absolute value.
    fn abs(self) -> Self;

    /// Returns the hyperbolic tangent.
    fn tanh(self) -> Self;

    /// Returns `ln(1 + exp(-|x|))`, the term shared by log-sigmoid and softplus.
    fn softplus_neg_abs(self) -> Self;

    /// Compares `self > other`; false where either is NaN.
    fn gt(self, other: Self) -> Self::Mask;

    /// Returns `if_true` where `mask` is set, else `if_false`.
    fn select(mask: Self::Mask, if_true: Self, if_false: Self) -> Self;

    /// Returns the value of `self` with the derivative of `source` (a straight-through estimator).
    #[inline(always)]
    fn with_gradient_of(self, source: Self) -> Self {
        let _ = source;
        self
    }

    /// Returns the value of `self`, treated as a constant by every derivative.
    #[inline(always)]
    fn stop_gradient(self) -> Self {
        self.with_gradient_of(Self::lit(0.0))
    }

    /// Returns `bound` where `bound > self`, else `self`. NaN in `self` propagates; NaN in `bound`
    /// is ignored.
    #[inline(always)]
    fn clamp_min(self, bound: Self) -> Self {
        Self::select(bound.gt(self), bound, self)
    }

    /// Returns `bound` where `self > bound`, else `self`. NaN in `self` propagates; NaN in `bound`
    /// is ignored.
    #[inline(always)]
    fn clamp_max(self, bound: Self) -> Self {
        Self::select(self.gt(bound), bound, self)
    }

    /// Returns the logistic function, `1 / (1 + exp(-x))`.
    #[inline(always)]
    fn sigmoid(self) -> Self {
        Self::lit(1.0) / (Self::lit(1.0) + (-self).exp())
    }

    /// Returns [`sigmoid`](Real::sigmoid) and its derivative `σ (1 - σ)`. The derivative is
    /// computed as `e / (1 + e)²` with `e = exp(-|x|)`, which stays accurate where σ is near 1 and
    /// `1 - σ` would cancel.
    #[inline(always)]
    fn sigmoid_and_slope(self) -> (Self, Self) {
        let one = Self::lit(1.0);
        let e = (-self.abs()).exp();
        let r = one / (one + e);
        let below = e * r;
        (Self::select(self.gt(Self::lit(0.0)), r, below), below * r)
    }

    /// Returns [`tanh`](Real::tanh) and its derivative `1 - tanh²`. The derivative is computed as
    /// `4 e / (1 + e)²` with `e = exp(-2|x|)`, which stays accurate where tanh is near ±1.
    #[inline(always)]
    fn tanh_and_slope(self) -> (Self, Self) {
        let (_, slope) = (self + self).sigmoid_and_slope();
        (self.tanh(), Self::lit(4.0) * slope)
    }

    /// Returns `ln(sigmoid(x))`, computed without overflow as `min(x, 0) - ln(1 + exp(-|x|))`.
    #[inline(always)]
    fn log_sigmoid(self) -> Self {
        self.clamp_max(Self::lit(0.0)) - self.softplus_neg_abs()
    }
}

macro_rules! scalar {
    ($t:ty) => {
        impl Real for $t {
            type Mask = bool;
            #[inline(always)]
            fn lit(v: f64) -> Self {
                v as $t
            }
            #[inline(always)]
            fn exp(self) -> Self {
                <$t>::exp(self)
            }
            #[inline(always)]
            fn ln(self) -> Self {
                <$t>::ln(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                <$t>::sqrt(self)
            }
            #[inline(always)]
            fn abs(self) -> Self {
                <$t>::abs(self)
            }
            #[inline(always)]
            fn tanh(self) -> Self {
                <$t>::tanh(self)
            }
            #[inline(always)]
            fn softplus_neg_abs(self) -> Self {
                <$t>::ln_1p(<$t>::exp(-<$t>::abs(self)))
            }
            #[inline(always)]
            fn gt(self, other: Self) -> bool {
                self > other
            }
            #[inline(always)]
            fn select(mask: bool, if_true: Self, if_false: Self) -> Self {
                if mask { if_true } else { if_false }
            }
        }
    };
}

scalar!(f32);
scalar!(f64);
