//! Computes all gates at once, for the backward pass of
//! [`Save::Recompute`](flashrnn_core::Save::Recompute).
//!
//! The states contain every `h_{t-1}`, so `R h + wx + b` is one large product with many steps per
//! tile. The gates are stored where the backward pass will replace them with their gradients: in
//! `d_wx`, and in a buffer for the gates without external input.

use std::ops::Range;

use flashrnn_core::Element;

use super::gather::{GatherH, Steps};
use crate::kernel::{GateLayout, Panels, Product, UnitOffsets};
use crate::memory::{SharedSlice, Span, WorkspaceLayout, WorkspaceView, at};
use crate::schedule::TimeAxis;
use crate::simd::{Simd, SimdTask, Storage, Vector};
use crate::threads::Workers;

/// The number of steps that share one pass over R.
const CHUNK_STEPS: usize = 96;

/// The arguments of the pass that recomputes the gates.
pub(crate) struct Recompute<'a, T: Element> {
    pub time: TimeAxis<'a>,
    /// The packed order of the forward pass.
    pub panels: Panels,
    /// `[N, panels.len()]`
    pub packed: &'a [T::Wide],
    /// `[G, N, D]`
    pub b: &'a [T::Wide],
    /// `[B, T, Gx, N, D]`
    pub wx: &'a [T],
    /// `[S, B, T, N, D]`
    pub states: &'a [T],
    /// `[S, B, N, D]`
    pub s0: Option<&'a [T::Wide]>,
    pub steps: &'a Steps<'a>,
    /// `[B, T, Gx, N, D]`, written.
    pub d_wx: SharedSlice<'a, T>,
    /// `[B, T, G - Gx, N, D]`, written.
    pub d_inner: SharedSlice<'a, T>,
    /// `[wide gates, B, T, N, D]`, written. The rounding errors of wide gates stored as `T`; the
    /// errors are also rounded to `T`. A gate and its remainder together have twice the digits of
    /// `T`, and the remainder takes half the memory of a wide number. An infinite gate saturates to
    /// a finite one with an infinite remainder.
    pub remainders: Option<SharedSlice<'a, T>>,
}

/// The scratch memory of all threads.
#[derive(Clone, Copy)]
pub(crate) struct RecomputeScratch {
    h: Span,
    products: Span,
    /// The number of elements of each array per thread.
    lens: [usize; 2],
}

impl RecomputeScratch {
    /// Adds the scratch memory to a workspace.
    pub fn new<V: Simd>(layout: &mut WorkspaceLayout, panels: &Panels, threads: usize) -> Self {
        let lens = [CHUNK_STEPS * panels.depth, V::ROWS * panels.outputs()];
        let [h, products] = lens.map(|len| layout.add::<V::Scalar>(threads.saturating_mul(len)));
        Self { h, products, lens }
    }
}

impl<T: Element> Recompute<'_, T> {
    /// Computes and stores all gates.
    ///
    /// # Safety
    /// The machine supports `V`'s instruction set; nothing else uses the memory of `scratch`.
    pub unsafe fn run<V: Vector<T>>(
        &self,
        workers: &Workers,
        memory: WorkspaceView<'_>,
        scratch: RecomputeScratch,
    ) {
        let chunks = self.steps.chunks(CHUNK_STEPS).len();
        // SAFETY: guaranteed by the caller.
        let (h, products) = unsafe { (memory.slice(scratch.h), memory.slice(scratch.products)) };
        let (h, products) = (SharedSlice::new(h), SharedSlice::new(products));
        let [h_len, products_len] = scratch.lens;
        workers.for_each(workers.threads(), self.time.shapes.heads * chunks, |me, i| {
            let (head, range) = (i / chunks, self.steps.chunk(i % chunks, CHUNK_STEPS));
            let stride = self.panels.depth;
            // SAFETY: only this thread uses these parts.
            let (h, products) = unsafe {
                let h = h.slice(me * h_len, range.len() * stride);
                (h, products.slice(me * products_len, products_len))
            };
            let gather = GatherH {
                time: self.time,
                head,
                states: self.states,
                s0: self.s0,
                steps: self.steps,
                range: range.clone(),
                out: &mut *h,
                stride,
            };
            // SAFETY: guaranteed by the caller; each task writes only the gates of its own head and
            // steps.
            unsafe {
                V::vectorize(gather);
                V::vectorize(Chunk { call: self, head, range, h, products });
            }
        });
    }
}

/// A range of steps of one head.
struct Chunk<'a, T: Element> {
    call: &'a Recompute<'a, T>,
    head: usize,
    range: Range<usize>,
    /// `[steps, D]`
    h: &'a [T::Wide],
    products: &'a mut [T::Wide],
}

impl<T: Element, V: Vector<T>> SimdTask<V> for Chunk<'_, T> {
    #[inline(always)]
    unsafe fn run(self) {
        let Chunk { call, head, range, h, products } = self;
        let (panels, d) = (&call.panels, call.panels.depth);
        for block in 0..panels.blocks() {
            for first in (0..range.len()).step_by(V::ROWS) {
                let rows = V::ROWS.min(range.len() - first);
                let product = Product {
                    panels,
                    block,
                    packed: panels.head(call.packed, head),
                    a: at(h, first * d, rows * d),
                    rows,
                    out: products.as_mut_ptr(),
                };
                // SAFETY: `products` has room for ROWS rows.
                unsafe { product.compute::<V>() };
                let start = range.start + first;
                for (r, (row, step)) in call.steps.range(start..start + rows).enumerate() {
                    let token = call.time.token(row, step);
                    for (i, vector) in panels.block_vectors(block).enumerate() {
                        let offset =
                            r * panels.outputs() + i * call.time.shapes.recurrent * V::LANES;
                        // SAFETY: the product has this vector of units; the gates of this head and
                        // step belong to this thread.
                        unsafe {
                            let len = call.time.shapes.recurrent * V::LANES;
                            let products = at(products, offset, len);
                            call.store_gates::<V>(head, token, vector, products);
                        }
                    }
                }
            }
        }
    }
}

impl<T: Element> Recompute<'_, T> {
    /// Computes the gates of a vector of units from `products [Gr, LANES]`, and stores them.
    ///
    /// # Safety
    /// The machine supports `V`'s instruction set; `products` is valid; no other thread uses these
    /// gates.
    #[inline(always)]
    unsafe fn store_gates<V: Vector<T>>(
        &self,
        head: usize,
        token: usize,
        vector: usize,
        products: *const T::Wide,
    ) {
        let shapes = self.time.shapes;
        let (d, inner) = (shapes.head_dim, shapes.inner());
        let n = V::LANES.min(d - vector * V::LANES);
        let units = UnitOffsets::new(shapes, head * d + vector * V::LANES);
        let layout = GateLayout::new(shapes);
        for k in 0..shapes.gates {
            // SAFETY: the tensors' shapes keep the n elements from each offset within bounds; `at`
            // checks this in debug builds.
            unsafe {
                let mut gate = <V as Storage<T::Wide>>::load_n(at(self.b, units.unit(k), n), n);
                if k >= inner {
                    let offset = units.unit(token * shapes.external + k - inner);
                    gate = gate + <V as Storage<T>>::load_n(at(self.wx, offset, n), n);
                }
                if k < shapes.recurrent {
                    gate = gate + <V as Storage<T::Wide>>::load(products.add(k * V::LANES));
                }
                let wide = shapes.wide_gates.iter().position(|&wide| wide == k);
                if let Some((out, i)) = self.remainders.zip(wide) {
                    let remainder = gate - Storage::<T>::rounded(gate);
                    Storage::<T>::store_n(remainder, out.at(units.token(i, token), n), n);
                }
                let (out, offset) = layout.locate(k, token, [self.d_wx, self.d_inner]);
                Storage::<T>::store_state_n(gate, out.at(offset + units.column(), n), n);
            }
        }
    }
}
