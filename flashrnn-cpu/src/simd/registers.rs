//! Macros that the vectors of AVX2 and AVX-512 share.

/// Evaluates an expression of intrinsics.
macro_rules! intrinsic {
    ($e:expr) => {
        // SAFETY: vectors exist only within `Simd::vectorize`, whose caller guarantees that the
        // machine has the instructions; functions that access memory state their own requirements.
        unsafe { $e }
    };
}

/// Implements arithmetic, `Simd` and the storage of unrounded numbers for a newtype over a
/// register.
macro_rules! register {
    ($v:ident, $scalar:ty, lanes: $lanes:expr, panel: $panel:expr, pairs: $pairs:expr,
     vectorize: $vectorize:ident, $add:ident $sub:ident $mul:ident $div:ident $xor:ident
     $fmadd:ident $set1:ident $load:ident $store:ident) => {
        register!(@operator $v, Add, add, $add);
        register!(@operator $v, Sub, sub, $sub);
        register!(@operator $v, Mul, mul, $mul);
        register!(@operator $v, Div, div, $div);

        impl std::ops::Neg for $v {
            type Output = Self;
            #[inline(always)]
            fn neg(self) -> Self {
                intrinsic!(Self($xor(self.0, $set1(-0.0))))
            }
        }

        impl $v {
            /// Applies a function lane by lane, for functions too rare to be worth a polynomial.
            #[inline(always)]
            fn map(self, f: impl Fn($scalar) -> $scalar) -> Self {
                let mut lanes = [<$scalar>::default(); $lanes];
                // SAFETY: the array is as long as the register has lanes.
                unsafe {
                    Storage::<$scalar>::store(self, lanes.as_mut_ptr());
                    <Self as Storage<$scalar>>::load(lanes.map(f).as_ptr())
                }
            }
        }

        impl Simd for $v {
            type Scalar = $scalar;
            const LANES: usize = $lanes;
            const PANEL: usize = $panel;
            const ROWS: usize = 6;
            const PAIRS: bool = $pairs;
            #[inline(always)]
            unsafe fn vectorize<K: SimdTask<Self>>(task: K) {
                // SAFETY: guaranteed by the caller.
                unsafe { $vectorize::<Self, K>(task) }
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

/// Defines methods of [`Real`](flashrnn_core::Real) for a newtype over a register.
macro_rules! real_functions {
    ($scalar:ty, $sqrt:ident $max:ident $min:ident) => {
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
        fn sqrt(self) -> Self {
            intrinsic!(Self($sqrt(self.0)))
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
        // If an operand is NaN, the instructions return the second operand, which is `self`, as
        // `Real` requires.
        #[inline(always)]
        fn clamp_min(self, bound: Self) -> Self {
            intrinsic!(Self($max(bound.0, self.0)))
        }
        #[inline(always)]
        fn clamp_max(self, bound: Self) -> Self {
            intrinsic!(Self($min(bound.0, self.0)))
        }
    };
}

pub(super) use {intrinsic, real_functions, register};
