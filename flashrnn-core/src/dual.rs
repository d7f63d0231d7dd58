//! Forward-mode differentiation with dual numbers.

use std::ops::{Add, Div, Mul, Neg, Sub};

use crate::Real;

/// A dual number: a value of type `R` and its derivative along one direction.
///
/// `Dual<R>` implements [`Real`] for every `R`, so a cell's derivative runs wherever the cell does.
/// At a kink, the derivative is that of the branch [`Real::select`] takes. `abs` has derivative 0
/// at 0, and `log_sigmoid` has its true derivative everywhere.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dual<R> {
    /// The value.
    pub value: R,
    /// The derivative of the value.
    pub tangent: R,
}

impl<R: Real> Dual<R> {
    /// Makes a number with tangent 0.
    #[inline(always)]
    pub fn constant(value: R) -> Self {
        Self { value, tangent: R::lit(0.0) }
    }

    /// Makes a number with tangent 1: the variable to differentiate by.
    #[inline(always)]
    pub fn variable(value: R) -> Self {
        Self { value, tangent: R::lit(1.0) }
    }

    /// Applies the chain rule to a function that has the given `value` and `slope` at `self`.
    #[inline(always)]
    fn chain(self, value: R, slope: R) -> Self {
        Self { value, tangent: self.tangent * slope }
    }
}

impl<R: Real> Add for Dual<R> {
    type Output = Self;
    #[inline(always)]
    fn add(self, o: Self) -> Self {
        Self { value: self.value + o.value, tangent: self.tangent + o.tangent }
    }
}

impl<R: Real> Sub for Dual<R> {
    type Output = Self;
    #[inline(always)]
    fn sub(self, o: Self) -> Self {
        Self { value: self.value - o.value, tangent: self.tangent - o.tangent }
    }
}

impl<R: Real> Mul for Dual<R> {
    type Output = Self;
    #[inline(always)]
    fn mul(self, o: Self) -> Self {
        Self {
            value: self.value * o.value,
            tangent: self.tangent * o.value + self.value * o.tangent,
        }
    }
}

impl<R: Real> Div for Dual<R> {
    type Output = Self;
    #[inline(always)]
    fn div(self, o: Self) -> Self {
        let value = self.value / o.value;
        Self { value, tangent: (self.tangent - value * o.tangent) / o.value }
    }
}

impl<R: Real> Neg for Dual<R> {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        Self { value: -self.value, tangent: -self.tangent }
    }
}

impl<R: Real> Real for Dual<R> {
    type Mask = R::Mask;

    #[inline(always)]
    fn lit(v: f64) -> Self {
        Self::constant(R::lit(v))
    }
    #[inline(always)]
    fn exp(self) -> Self {
        let value = self.value.exp();
        self.chain(value, value)
    }
    #[inline(always)]
    fn ln(self) -> Self {
        self.chain(self.value.ln(), R::lit(1.0) / self.value)
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        let value = self.value.sqrt();
        self.chain(value, R::lit(0.5) / value)
    }
    #[inline(always)]
    fn abs(self) -> Self {
        let zero = R::lit(0.0);
        let below = R::select(zero.gt(self.value), R::lit(-1.0), zero);
        self.chain(self.value.abs(), R::select(self.value.gt(zero), R::lit(1.0), below))
    }
    #[inline(always)]
    fn tanh(self) -> Self {
        let (value, slope) = self.value.tanh_and_slope();
        self.chain(value, slope)
    }
    #[inline(always)]
    fn softplus_neg_abs(self) -> Self {
        // The slope of ln(1 + exp(-|x|)) is -sign(x) σ(-|x|).
        let positive = self.value.gt(R::lit(0.0));
        let slope = (-self.value.abs()).sigmoid();
        self.chain(self.value.softplus_neg_abs(), R::select(positive, -slope, slope))
    }
    #[inline(always)]
    fn gt(self, other: Self) -> Self::Mask {
        self.value.gt(other.value)
    }
    #[inline(always)]
    fn select(mask: Self::Mask, if_true: Self, if_false: Self) -> Self {
        Self {
            value: R::select(mask, if_true.value, if_false.value),
            tangent: R::select(mask, if_true.tangent, if_false.tangent),
        }
    }
    #[inline(always)]
    fn with_gradient_of(self, source: Self) -> Self {
        Self { value: self.value.with_gradient_of(source.value), tangent: source.tangent }
    }
    #[inline(always)]
    fn sigmoid(self) -> Self {
        let (value, slope) = self.value.sigmoid_and_slope();
        self.chain(value, slope)
    }
    #[inline(always)]
    fn log_sigmoid(self) -> Self {
        self.chain(self.value.log_sigmoid(), (-self.value).sigmoid())
    }
}
