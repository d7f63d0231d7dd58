//! Two vectors as one number.
//!
//! A cell is a long chain of dependent operations with a latency of a few hundred cycles. A core
//! cannot look far enough ahead to overlap it with the next vector. Interleaving two vectors,
//! operation by operation, hides the latency.

use std::ops::{Add, Div, Mul, Neg, Sub};

use flashrnn_core::Real;

/// Two numbers or vectors. Each operation acts on both in turn.
#[derive(Clone, Copy)]
pub(crate) struct Pair<V>(pub V, pub V);

macro_rules! binary {
    ($trait:ident, $method:ident) => {
        impl<V: Real> $trait for Pair<V> {
            type Output = Self;
            #[inline(always)]
            fn $method(self, o: Self) -> Self {
                Self(self.0.$method(o.0), self.1.$method(o.1))
            }
        }
    };
}

binary!(Add, add);
binary!(Sub, sub);
binary!(Mul, mul);
binary!(Div, div);

impl<V: Real> Neg for Pair<V> {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        Self(-self.0, -self.1)
    }
}

macro_rules! unary {
    ($($method:ident)*) => {
        $(
            #[inline(always)]
            fn $method(self) -> Self {
                Self(self.0.$method(), self.1.$method())
            }
        )*
    };
}

impl<V: Real> Real for Pair<V> {
    type Mask = (V::Mask, V::Mask);

    unary!(exp ln sqrt abs tanh softplus_neg_abs sigmoid log_sigmoid);

    #[inline(always)]
    fn lit(v: f64) -> Self {
        Self(V::lit(v), V::lit(v))
    }
    #[inline(always)]
    fn gt(self, o: Self) -> Self::Mask {
        (self.0.gt(o.0), self.1.gt(o.1))
    }
    #[inline(always)]
    fn select(mask: Self::Mask, if_true: Self, if_false: Self) -> Self {
        Self(V::select(mask.0, if_true.0, if_false.0), V::select(mask.1, if_true.1, if_false.1))
    }
    #[inline(always)]
    fn clamp_min(self, bound: Self) -> Self {
        Self(self.0.clamp_min(bound.0), self.1.clamp_min(bound.1))
    }
    #[inline(always)]
    fn clamp_max(self, bound: Self) -> Self {
        Self(self.0.clamp_max(bound.0), self.1.clamp_max(bound.1))
    }
    #[inline(always)]
    fn tanh_and_slope(self) -> (Self, Self) {
        let (a, b) = (self.0.tanh_and_slope(), self.1.tanh_and_slope());
        (Self(a.0, b.0), Self(a.1, b.1))
    }
    #[inline(always)]
    fn sigmoid_and_slope(self) -> (Self, Self) {
        let (a, b) = (self.0.sigmoid_and_slope(), self.1.sigmoid_and_slope());
        (Self(a.0, b.0), Self(a.1, b.1))
    }
}
