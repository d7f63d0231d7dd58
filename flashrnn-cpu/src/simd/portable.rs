//! Vectors of one lane, for any machine, with the standard library's functions.

use flashrnn_core::Element;

use super::vector::{Simd, SimdTask, Storage};

macro_rules! portable {
    ($t:ty) => {
        impl Simd for $t {
            type Scalar = $t;
            const LANES: usize = 1;
            const PANEL: usize = 4;
            const ROWS: usize = 4;
            const PAIRS: bool = true;
            #[inline(always)]
            unsafe fn vectorize<K: SimdTask<Self>>(task: K) {
                // SAFETY: guaranteed by the caller; every machine has this instruction set.
                unsafe { task.run() }
            }
            #[inline(always)]
            fn splat(v: $t) -> Self {
                v
            }
            #[inline(always)]
            fn mul_add(self, b: Self, c: Self) -> Self {
                self * b + c
            }
        }

        impl<T: Element<Wide = $t>> Storage<T> for $t {
            #[inline(always)]
            unsafe fn load(p: *const T) -> Self {
                // SAFETY: guaranteed by the caller.
                unsafe { *p }.to_wide()
            }
            #[inline(always)]
            unsafe fn store(self, p: *mut T) {
                // SAFETY: guaranteed by the caller.
                unsafe { *p = T::from_wide(self) }
            }
            #[inline(always)]
            fn rounded(self) -> Self {
                T::saturating_from_wide(self).to_wide()
            }
        }
    };
}

portable!(f32);
portable!(f64);
