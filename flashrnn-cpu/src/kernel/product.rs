//! Multiplies a few rows by a block of a head's packed matrix.
//!
//! With ROWS rows at a time, ROWS × PANEL accumulators stay in registers: per `k`, PANEL loads and
//! ROWS broadcasts feed ROWS × PANEL multiply-adds. One accumulator sums each output over `k` in
//! order, so its bits do not depend on the number of rows, blocks or threads.

use std::ops::Range;

use flashrnn_core::Element;

use super::panels::Panels;
use super::tile::Tile;
use crate::memory::at;
use crate::simd::{Simd, SimdTask, Storage};

/// The product of `rows <= ROWS` rows of `a` with one block.
pub(crate) struct Product<'a, S> {
    pub panels: &'a Panels,
    pub block: usize,
    /// A head's packed matrix.
    pub packed: &'a [S],
    /// `[rows, depth]`
    pub a: *const S,
    pub rows: usize,
    /// `[rows, vectors of the block, outputs per unit, LANES]`, written; rows are
    /// [`Panels::outputs`] apart.
    pub out: *mut S,
}

impl<S: Element> Product<'_, S> {
    /// Computes the product.
    ///
    /// # Safety
    /// `a` and `out` are valid for their shapes; the machine supports `V`'s instruction set.
    // Not inlined, so that it is compiled once, not once per cell.
    #[inline(never)]
    pub unsafe fn compute<V: Storage<S> + Simd<Scalar = S>>(self) {
        // SAFETY: guaranteed by the caller.
        unsafe { V::vectorize(self) }
    }
}

impl<V: Storage<S> + Simd<Scalar = S>, S: Element> SimdTask<V> for Product<'_, S> {
    #[inline(always)]
    unsafe fn run(self) {
        let Product { panels, block, packed, a, rows, out } = self;
        let (depth, out_stride) = (panels.depth, panels.outputs());
        let Range { start, end } = panels.block_vectors(block);
        let (start, end) = (start * panels.per_unit, end * panels.per_unit);
        let mut v = start;
        while v < end {
            let (first, width, step) = panels.output_vector(v, V::LANES, V::PANEL);
            let width = width.min(end - v);
            let panel = at(packed, first, (depth - 1) * step + width * V::LANES);
            let out = out.wrapping_add((v - start) * V::LANES);
            let tile = Tile { depth, a, stride: depth, b: panel, step, out, out_stride };
            // SAFETY: guaranteed by the caller of `compute`.
            unsafe { tile.compute::<V, false>(rows, width) };
            v += width;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::threads::Workers;

    /// Compares the packed product of `[per_unit · units, depth]` with plain sums.
    fn check_product(per_unit: usize, units: usize, depth: usize, rows: usize, block: usize) {
        // Packed with one block size and read with another.
        let packing = Panels { depth, per_unit, units, block: 4, lanes: 1, panel: 4 };
        let panels = Panels { block, ..packing };
        let matrix: Vec<f64> =
            (0..per_unit * units * depth).map(|i| (i * 37 % 101) as f64 - 50.0).collect();
        let mut packed = vec![0.0; packing.len()];
        packing.pack(&Workers::single(), &matrix, &mut packed, |_, kind, unit, k| {
            ((kind * units + unit) * depth + k, depth)
        });
        let a: Vec<f64> = (0..rows * depth).map(|i| (i * 13 % 17) as f64 - 8.0).collect();
        for block in 0..panels.blocks() {
            let mut out = vec![f64::NAN; rows * panels.outputs()];
            let (a_start, out_start) = (a.as_ptr(), out.as_mut_ptr());
            let product = Product {
                panels: &panels,
                block,
                packed: &packed,
                a: a_start,
                rows,
                out: out_start,
            };
            // SAFETY: `a` and `out` have the required shapes; a vector of one f64 needs no
            // instruction set.
            unsafe { product.compute::<f64>() };
            for row in 0..rows {
                for (i, unit) in panels.block_vectors(block).enumerate() {
                    for kind in 0..per_unit {
                        let factors = &matrix[(kind * units + unit) * depth..][..depth];
                        let want: f64 =
                            factors.iter().zip(&a[row * depth..]).map(|(r, a)| r * a).sum();
                        assert_eq!(out[row * panels.outputs() + i * per_unit + kind], want);
                    }
                }
            }
        }
    }

    #[test]
    fn products_of_all_widths_and_numbers_of_rows_are_right() {
        for per_unit in 1..=6 {
            for units in [1, 2, 3, 7] {
                for rows in 1..=6 {
                    (1..=4).for_each(|block| check_product(per_unit, units, 5, rows, block));
                }
            }
        }
    }
}
