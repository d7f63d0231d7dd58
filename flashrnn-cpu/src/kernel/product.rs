//! The product of a few rows with a head's packed matrix: where the time goes.
//!
//! The matrix is cut into vectors of outputs (LANES of them), all gates of one vector of units
//! after the other, and packed panel by panel, so that the product reads it once, in order:
//!
//! ```text
//! panel 0                                     panel 1 …
//! k=0: v0 v1 v2 v3 | k=1: v0 v1 v2 v3 | …     k=0: v4 v5 v6 v7 | …
//! (v: a vector of LANES outputs; k: the index that is summed over)
//! ```
//!
//! This order depends on LANES and PANEL alone ([`PackedOrder`]). A block is the outputs that one
//! thread computes and then needs together: in the forward pass all gates of one or more vectors of
//! units, in the backward pass a panel's width of units. Its size may depend on the number of
//! threads; where it begins or ends within a panel, the product reads a part of each of the panel's
//! rows. With ROWS rows at a time, ROWS × PANEL accumulators stay in registers: per k, PANEL loads
//! and ROWS broadcasts feed ROWS × PANEL multiply-adds. Each output is summed over k in order by
//! one accumulator, so its bits do not depend on how many rows, blocks or threads there are.

use std::ops::Range;

use flashrnn_core::Element;

use crate::kernel::tile::Tile;
use crate::memory::{Shared, at};
use crate::schedule::division::WHOLE;
use crate::simd::{For, LINE, Op, Simd, Storage};
use crate::threads::workers::Workers;

/// A thread packs about as many elements while another one is woken; fewer are not worth sharing.
const MIN_SHARE_PACKED: usize = 1 << 15;

/// How a matrix `[outputs, depth]` is packed. Outputs come as `kinds` groups (gates) of `units`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panels {
    /// The number of terms of each sum.
    pub depth: usize,
    /// How many outputs a unit has: Gr in the forward pass, 1 in the backward pass.
    pub kinds: usize,
    /// The number of units, D.
    pub units: usize,
    /// Vectors of units in a block. It plays no part in the order.
    pub block: usize,
    pub lanes: usize,
    pub panel: usize,
}

/// The order of packed weights: which vectors read them. Two plans with equal orders and sizes
/// share packed weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedOrder {
    lanes: usize,
    panel: usize,
}

impl Panels {
    /// For `R h`: `recurrent` gates a unit, summed over D.
    pub fn forward<V: Simd>(recurrent: usize, head_dim: usize, threads: usize) -> Self {
        // A few vectors, to share what a row costs in each block; but where threads share a head,
        // each needs a block.
        let matrix = recurrent * head_dim * head_dim * size_of::<V::Scalar>();
        let least = if matrix <= WHOLE { 4 } else { (head_dim / V::LANES / threads).clamp(2, 4) };
        let block = (V::PANEL / recurrent).max(least);
        Self {
            depth: head_dim,
            kinds: recurrent,
            units: head_dim,
            block,
            lanes: V::LANES,
            panel: V::PANEL,
        }
    }

    /// For `Rᵀ dg`: one output a unit, summed over `recurrent` gates of D units.
    pub fn backward<V: Simd>(recurrent: usize, head_dim: usize) -> Self {
        let depth = recurrent * head_dim;
        Self { depth, kinds: 1, units: head_dim, block: V::PANEL, lanes: V::LANES, panel: V::PANEL }
    }

    /// What the order of the packed matrix depends on besides its sizes.
    pub fn order(&self) -> PackedOrder {
        PackedOrder { lanes: self.lanes, panel: self.panel }
    }

    /// The number of vectors that hold the units; the last may be partly empty.
    pub fn vectors(&self) -> usize {
        self.units.div_ceil(self.lanes)
    }

    /// The number of blocks.
    pub fn blocks(&self) -> usize {
        self.vectors().div_ceil(self.block)
    }

    /// The vectors of units of a block.
    #[inline(always)]
    pub fn block_vectors(&self, block: usize) -> Range<usize> {
        block * self.block..((block + 1) * self.block).min(self.vectors())
    }

    /// Where cache lines of elements of `P` begin that hold the units of a block.
    #[inline(always)]
    pub fn block_lines<P>(&self, block: usize) -> impl Iterator<Item = usize> + use<P> {
        let Range { start, end } = self.block_vectors(block);
        (start * self.lanes..(end * self.lanes).min(self.units)).step_by(LINE / size_of::<P>())
    }

    /// Elements of a packed head.
    pub fn len(&self) -> usize {
        self.vectors() * self.kinds * self.depth * self.lanes
    }

    /// Elements that one row's product with a block has.
    #[inline(always)]
    pub fn outputs(&self) -> usize {
        self.block * self.kinds * self.lanes
    }

    /// Elements of a panel; the last one may have fewer.
    pub fn panel_len(&self) -> usize {
        self.panel * self.depth * self.lanes
    }

    /// Where the part of a panel from vector `v` of outputs on starts in a packed head, how many
    /// vectors it has, and how far (in elements) it is from one `k` to the next. Inlined with
    /// `lanes` and `panel` as constants, it divides by shifts.
    #[inline(always)]
    fn part(&self, v: usize, lanes: usize, panel: usize) -> (usize, usize, usize) {
        let (first, offset) = (v / panel * panel, v % panel);
        let width = panel.min(self.units.div_ceil(lanes) * self.kinds - first);
        ((first * self.depth + offset) * lanes, width - offset, width * lanes)
    }

    /// Where a kind's vector of units starts in a packed head, and how far it is from one `k` to
    /// the next.
    pub fn place(&self, kind: usize, vector: usize) -> (usize, usize) {
        let (start, _, step) = self.part(vector * self.kinds + kind, self.lanes, self.panel);
        (start, step)
    }

    /// Packs every head's matrix from `from` to `packed [heads, len]`, where the factors of term
    /// `k` in the outputs of a kind for the units from `unit` on start at, and are apart by,
    /// `source(head, kind, unit, k)`.
    pub fn pack<S: Element>(
        &self,
        workers: &Workers,
        from: &[S],
        packed: &mut [S],
        source: impl Fn(usize, usize, usize, usize) -> (usize, usize) + Sync,
    ) {
        let (len, panels) = (self.len(), (self.vectors() * self.kinds).div_ceil(self.panel));
        let heads = packed.len() / len;
        let members = workers.threads().min(packed.len() / MIN_SHARE_PACKED + 1);
        let packed = Shared::new(packed);
        workers.for_each(members, heads * panels, |_, i| {
            let (head, panel) = (i / panels, i % panels);
            let start = panel * self.panel_len();
            let n = self.panel_len().min(len - start);
            // SAFETY: each panel is claimed by one thread.
            let packed = unsafe { packed.slice(head * len + start, n) };
            self.pack_panel(panel, packed, from, |kind, unit, k| source(head, kind, unit, k));
        });
    }

    /// Packs one panel of a head.
    fn pack_panel<S: Element>(
        &self,
        panel: usize,
        packed: &mut [S],
        from: &[S],
        source: impl Fn(usize, usize, usize) -> (usize, usize),
    ) {
        let outputs = self.vectors() * self.kinds;
        for v in panel * self.panel..((panel + 1) * self.panel).min(outputs) {
            let (kind, unit) = (v % self.kinds, v / self.kinds * self.lanes);
            let n = self.lanes.min(self.units - unit);
            let (start, _, step) = self.part(v, self.lanes, self.panel);
            let start = start - panel * self.panel_len();
            // Tiles of a cache line each way: rows of a power of two would else evict each other.
            for k0 in (0..self.depth).step_by(16) {
                let terms = 16.min(self.depth - k0);
                let mut places = [(0, 0); 16];
                for (i, place) in places[..terms].iter_mut().enumerate() {
                    *place = source(kind, unit, k0 + i);
                }
                for lane in 0..n {
                    for (i, &(first, stride)) in places[..terms].iter().enumerate() {
                        packed[start + (k0 + i) * step + lane] = from[first + lane * stride];
                    }
                }
            }
        }
    }
}

/// One product: `rows <= ROWS` rows of `a` with one block.
pub(crate) struct Product<'a, S> {
    pub panels: &'a Panels,
    pub block: usize,
    /// A head's packed matrix.
    pub packed: &'a [S],
    /// `[rows, depth]`, rows `stride` apart.
    pub a: *const S,
    pub stride: usize,
    pub rows: usize,
    /// `[rows, vectors of the block, kinds, LANES]`, written; rows [`Panels::outputs`] apart.
    pub out: *mut S,
}

impl<S> Product<'_, S> {
    /// # Safety
    /// `a` and `out` are valid for what their shapes say; the machine has `V`'s instruction set.
    #[inline(always)]
    pub unsafe fn compute<V: Storage<S> + Simd<Scalar = S>>(self)
    where
        S: Element,
    {
        // A call of its own, so that it is compiled once and not once a cell.
        // SAFETY: as promised by the caller.
        unsafe { product::<V, S>(self) }
    }
}

#[inline(never)]
unsafe fn product<V: Storage<S> + Simd<Scalar = S>, S: Element>(call: Product<'_, S>) {
    // SAFETY: as promised by the caller of `compute`.
    unsafe { For::<V, _>::run_vectorized(call) }
}

impl<V: Storage<S> + Simd<Scalar = S>, S: Element> Op for For<V, Product<'_, S>> {
    type Output = ();

    #[inline(always)]
    unsafe fn run(self) {
        let Product { panels, block, packed, a, stride, rows, out } = self.work;
        let Range { start, end } = panels.block_vectors(block);
        let (start, end) = (start * panels.kinds, end * panels.kinds);
        let mut v = start;
        while v < end {
            let (first, width, step) = panels.part(v, V::LANES, V::PANEL);
            let width = width.min(end - v);
            let panel = at(packed, first, (panels.depth - 1) * step + width * V::LANES);
            let out = out.wrapping_add((v - start) * V::LANES);
            let (depth, out_stride) = (panels.depth, panels.outputs());
            let tile = Tile { depth, a, stride, b: panel, step, out, out_stride };
            // SAFETY: as promised by the caller of `compute`.
            unsafe { tile.compute::<V, false>(rows, width) };
            v += width;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `[outputs, depth]` with `outputs = kinds · units`, packed, times one row, against the
    /// obvious sum.
    fn product_is_right(kinds: usize, units: usize, depth: usize, rows: usize, block: usize) {
        // Packed as for another size of blocks, and read in blocks of this one.
        let packing = Panels { depth, kinds, units, block: 4, lanes: 1, panel: 4 };
        let panels = Panels { block, ..packing };
        let matrix: Vec<f64> =
            (0..kinds * units * depth).map(|i| (i * 37 % 101) as f64 - 50.0).collect();
        let workers = Workers::alone();
        let mut packed = vec![0.0; packing.len()];
        packing.pack(&workers, &matrix, &mut packed, |_, kind, unit, k| {
            ((kind * units + unit) * depth + k, depth)
        });
        let a: Vec<f64> = (0..rows * depth).map(|i| (i * 13 % 17) as f64 - 8.0).collect();
        for block in 0..panels.blocks() {
            let mut out = vec![f64::NAN; rows * panels.outputs()];
            let (a_start, out_start) = (a.as_ptr(), out.as_mut_ptr());
            let packed = &packed[..];
            let call = Product {
                panels: &panels,
                block,
                packed,
                a: a_start,
                stride: depth,
                rows,
                out: out_start,
            };
            // SAFETY: `a` and `out` have the shapes asked for; vectors of one f64 need no
            // instruction set.
            unsafe { call.compute::<f64>() };
            for row in 0..rows {
                for (i, unit) in panels.block_vectors(block).enumerate() {
                    for kind in 0..kinds {
                        let want: f64 = (0..depth)
                            .map(|k| matrix[(kind * units + unit) * depth + k] * a[row * depth + k])
                            .sum();
                        assert_eq!(out[row * panels.outputs() + i * kinds + kind], want);
                    }
                }
            }
        }
    }

    #[test]
    fn every_width_and_number_of_rows() {
        for kinds in 1..=6 {
            for units in [1, 2, 3, 7] {
                for rows in 1..=6 {
                    (1..=4).for_each(|block| product_is_right(kinds, units, 5, rows, block));
                }
            }
        }
    }
}
