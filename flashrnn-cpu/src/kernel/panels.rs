//! The order of packed weights.
//!
//! The matrix is divided into vectors of LANES outputs. All outputs of one vector of units precede
//! those of the next. The vectors are packed panel by panel, so a product reads the matrix once, in
//! order:
//!
//! ```text
//! panel 0                                     panel 1 …
//! k=0: v0 v1 v2 v3 | k=1: v0 v1 v2 v3 | …     k=0: v4 v5 v6 v7 | …
//! (v: a vector of LANES outputs; k: the index that is summed over)
//! ```
//!
//! The order depends only on LANES and PANEL ([`PackedOrder`]).

use std::ops::Range;

use flashrnn_core::Element;

use crate::memory::{CACHE_LINE, SharedSlice};
use crate::schedule::MAX_WHOLE_MATRIX;
use crate::simd::Simd;
use crate::threads::Workers;

/// The minimum number of elements that each thread packs. Packing fewer takes less time than waking
/// another thread.
const MIN_SHARE_PACKED: usize = 1 << 15;

/// The layout of a packed matrix `[outputs, depth]` and its division into blocks.
///
/// A block consists of the outputs that one thread computes and then uses together: in the forward
/// pass, all gates of some vectors of units; in the backward pass, a panel's width of units. Its
/// size may depend on the number of threads. If a block begins or ends within a panel, the product
/// reads part of each of the panel's rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panels {
    /// The number of terms of each sum.
    pub depth: usize,
    /// Outputs per unit: Gr in the forward pass, 1 in the backward pass.
    pub per_unit: usize,
    /// Units per head, D.
    pub units: usize,
    /// Vectors of units per block. The packed order does not depend on it.
    pub block: usize,
    pub lanes: usize,
    /// Vectors of outputs per panel.
    pub panel: usize,
}

/// The order of packed weights, as determined by the vectors that read them. Plans with equal
/// orders and sizes can share packed weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedOrder {
    lanes: usize,
    panel: usize,
}

impl Panels {
    /// Returns the layout for `R h`: `recurrent` gates per unit, summed over D.
    pub fn forward<V: Simd>(recurrent: usize, head_dim: usize, threads: usize) -> Self {
        // Several vectors per block amortise the cost per row and block. If threads share a head,
        // there must be a block for each of them.
        let matrix = recurrent * head_dim * head_dim * size_of::<V::Scalar>();
        let vectors = if matrix <= MAX_WHOLE_MATRIX {
            4
        } else {
            (head_dim / V::LANES / threads).clamp(2, 4)
        };
        Self {
            depth: head_dim,
            per_unit: recurrent,
            units: head_dim,
            block: (V::PANEL / recurrent).max(vectors),
            lanes: V::LANES,
            panel: V::PANEL,
        }
    }

    /// Returns the layout for `Rᵀ dg`: one output per unit, summed over `recurrent` gates of D
    /// units.
    pub fn backward<V: Simd>(recurrent: usize, head_dim: usize) -> Self {
        Self {
            depth: recurrent * head_dim,
            per_unit: 1,
            units: head_dim,
            block: V::PANEL,
            lanes: V::LANES,
            panel: V::PANEL,
        }
    }

    /// Returns the order of the packed matrix.
    pub fn order(&self) -> PackedOrder {
        PackedOrder { lanes: self.lanes, panel: self.panel }
    }

    /// Returns the number of vectors of units per head. The last vector may be partly filled.
    pub fn vectors(&self) -> usize {
        self.units.div_ceil(self.lanes)
    }

    /// Returns the number of units of a head, padded to whole vectors.
    pub fn padded_units(&self) -> usize {
        self.vectors() * self.lanes
    }

    /// Returns the number of blocks per head.
    pub fn blocks(&self) -> usize {
        self.vectors().div_ceil(self.block)
    }

    /// Returns the range of vectors of units in a block.
    #[inline(always)]
    pub fn block_vectors(&self, block: usize) -> Range<usize> {
        block * self.block..((block + 1) * self.block).min(self.vectors())
    }

    /// Returns the first unit in each cache line of a block, if units are stored as `P`.
    #[inline(always)]
    pub fn block_lines<P>(&self, block: usize) -> impl Iterator<Item = usize> + use<P> {
        let Range { start, end } = self.block_vectors(block);
        (start * self.lanes..(end * self.lanes).min(self.units))
            .step_by(CACHE_LINE / size_of::<P>())
    }

    /// Returns the number of elements of one row's product with a block.
    #[inline(always)]
    pub fn outputs(&self) -> usize {
        self.block * self.per_unit * self.lanes
    }

    /// Returns the number of elements of a head's packed matrix.
    pub fn len(&self) -> usize {
        self.vectors() * self.per_unit * self.depth * self.lanes
    }

    /// Returns a head's matrix in `packed [N, len]`.
    #[inline(always)]
    pub fn head<'a, S>(&self, packed: &'a [S], head: usize) -> &'a [S] {
        &packed[head * self.len()..][..self.len()]
    }

    /// Returns the number of elements of a panel. The last panel may have fewer.
    fn panel_len(&self) -> usize {
        self.panel * self.depth * self.lanes
    }

    /// Returns the offset of vector `v` of outputs in a packed head, the number of vectors from `v`
    /// to the end of its panel, and the number of elements from one `k` to the next.
    ///
    /// Takes `lanes` and `panel` as arguments, so that divisions become shifts if they are
    /// constants.
    #[inline(always)]
    pub fn output_vector(&self, v: usize, lanes: usize, panel: usize) -> (usize, usize, usize) {
        let (first, offset) = (v / panel * panel, v % panel);
        let width = panel.min(self.units.div_ceil(lanes) * self.per_unit - first);
        ((first * self.depth + offset) * lanes, width - offset, width * lanes)
    }

    /// Returns the offset in a packed head of output `kind` (a gate in the forward pass) of a
    /// vector of units, and the number of elements from one `k` to the next.
    pub fn output(&self, kind: usize, vector: usize) -> (usize, usize) {
        let (start, _, step) =
            self.output_vector(vector * self.per_unit + kind, self.lanes, self.panel);
        (start, step)
    }

    /// Packs the matrices of all heads from `from` to `packed [N, len]`.
    ///
    /// `source(head, kind, unit, k)` returns the index in `from` of term `k` of a unit's output
    /// `kind`, and the distance in elements to the same term of the next unit.
    pub fn pack<S: Element>(
        &self,
        workers: &Workers,
        from: &[S],
        packed: &mut [S],
        source: impl Fn(usize, usize, usize, usize) -> (usize, usize) + Sync,
    ) {
        let (len, panels) = (self.len(), (self.vectors() * self.per_unit).div_ceil(self.panel));
        let heads = packed.len() / len;
        let members = workers.threads().min(packed.len() / MIN_SHARE_PACKED + 1);
        let packed = SharedSlice::new(packed);
        workers.for_each(members, heads * panels, |_, i| {
            let (head, panel) = (i / panels, i % panels);
            let start = panel * self.panel_len();
            let n = self.panel_len().min(len - start);
            // SAFETY: one thread packs each panel.
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
        /// The number of terms per tile. A tile is about one cache line long in both directions,
        /// because rows whose distance is a power of two would evict each other.
        const TILE: usize = 16;
        let outputs = self.vectors() * self.per_unit;
        for v in panel * self.panel..((panel + 1) * self.panel).min(outputs) {
            let (kind, unit) = (v % self.per_unit, v / self.per_unit * self.lanes);
            let n = self.lanes.min(self.units - unit);
            let (start, _, step) = self.output_vector(v, self.lanes, self.panel);
            let start = start - panel * self.panel_len();
            for k0 in (0..self.depth).step_by(TILE) {
                let terms = TILE.min(self.depth - k0);
                let mut sources = [(0, 0); TILE];
                for (i, place) in sources[..terms].iter_mut().enumerate() {
                    *place = source(kind, unit, k0 + i);
                }
                let tile = &mut packed[start + k0 * step..];
                for lane in 0..n {
                    let lanes = tile[lane..].iter_mut().step_by(step);
                    for (packed, &(first, stride)) in lanes.zip(&sources[..terms]) {
                        *packed = from[first + lane * stride];
                    }
                }
            }
        }
    }
}
