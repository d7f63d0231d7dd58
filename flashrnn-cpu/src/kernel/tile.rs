//! A matrix product whose sums stay in registers.

use flashrnn_core::Element;

use crate::simd::{Simd, Storage};

/// `out [rows, width] = a [rows, depth] · b [depth, width]`, where `width` counts vectors. With
/// `ADD`, `out += aᵀ b` with `a [depth, rows]`. Terms are added in the order of `depth`.
#[derive(Clone, Copy)]
pub(crate) struct Tile<S> {
    /// The number of terms of each sum.
    pub depth: usize,
    pub a: *const S,
    /// Elements from one row of `a` to the next.
    pub stride: usize,
    pub b: *const S,
    /// Elements from one row of `b` to the next.
    pub step: usize,
    pub out: *mut S,
    /// Elements from one row of `out` to the next.
    pub out_stride: usize,
}

impl<S: Element> Tile<S> {
    /// Computes the product.
    ///
    /// # Safety
    /// All three matrices are valid for `rows <= ROWS` and `width <= PANEL`; the machine supports
    /// `V`'s instruction set.
    #[inline(always)]
    pub unsafe fn compute<V: Storage<S> + Simd<Scalar = S>, const ADD: bool>(
        self,
        rows: usize,
        width: usize,
    ) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            match width {
                1 => self.rows::<V, ADD, 1>(rows),
                2 => self.rows::<V, ADD, 2>(rows),
                3 => self.rows::<V, ADD, 3>(rows),
                _ => self.rows::<V, ADD, 4>(rows),
            }
        }
    }

    #[inline(always)]
    unsafe fn rows<V: Storage<S> + Simd<Scalar = S>, const ADD: bool, const WIDTH: usize>(
        self,
        rows: usize,
    ) {
        // SAFETY: guaranteed by the caller of `compute`.
        unsafe {
            match rows {
                1 => self.run::<V, ADD, 1, WIDTH>(),
                2 => self.run::<V, ADD, 2, WIDTH>(),
                3 => self.run::<V, ADD, 3, WIDTH>(),
                4 => self.run::<V, ADD, 4, WIDTH>(),
                5 => self.run::<V, ADD, 5, WIDTH>(),
                _ => self.run::<V, ADD, 6, WIDTH>(),
            }
        }
    }

    #[inline(always)]
    unsafe fn run<V, const ADD: bool, const ROWS: usize, const WIDTH: usize>(self)
    where
        V: Storage<S> + Simd<Scalar = S>,
    {
        let mut sums = [[V::lit(0.0); WIDTH]; ROWS];
        let out =
            |row: usize, v: usize| self.out.wrapping_add(row * self.out_stride + v * V::LANES);
        if ADD {
            for (row, sums) in sums.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: guaranteed by the caller of `compute`.
                    *sum = unsafe { V::load(out(row, v)) };
                }
            }
        }
        for k in 0..self.depth {
            // SAFETY: guaranteed by the caller of `compute`.
            unsafe {
                let b = self.b.add(k * self.step);
                let mut factors = [V::lit(0.0); WIDTH];
                for (v, factor) in factors.iter_mut().enumerate() {
                    *factor = V::load(b.add(v * V::LANES));
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    let i = if ADD { k * self.stride + row } else { row * self.stride + k };
                    let a = V::splat(*self.a.add(i));
                    for (sum, &factor) in sums.iter_mut().zip(&factors) {
                        *sum = factor.mul_add(a, *sum);
                    }
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                // SAFETY: guaranteed by the caller of `compute`.
                unsafe { sum.store(out(row, v)) };
            }
        }
    }
}
