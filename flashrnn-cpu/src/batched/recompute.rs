//! All gates at once, for the backward pass of [`Save::Recompute`](flashrnn_core::Save::Recompute).
//!
//! Every `h_{t-1}` is known from the states, so `R h + wx + b` is one large product, many steps a
//! tile. The gates go where the backward pass will overwrite them by their gradients: `d_wx`, and a
//! buffer for those without external input.

use flashrnn_core::Element;

use crate::batched::gather::{GatherH, Steps};
use crate::kernel::forward::GateLayout;
use crate::kernel::product::{Panels, Product};
use crate::memory::{Memory, Shared, Span, SpanLayout, at};
use crate::schedule::tasks::Time;
use crate::simd::{For, Op, Simd, Storage, Vector};
use crate::threads::workers::Workers;

/// Steps that share a pass over R.
const CHUNK: usize = 96;

/// The tensors of a call, as slices.
pub(crate) struct Recompute<'a, T: Element> {
    pub time: Time<'a>,
    /// The panels of the forward pass.
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
    pub d_wx: Shared<'a, T>,
    /// `[B, T, G - Gx, N, D]`, written.
    pub d_inner: Shared<'a, T>,
    /// `[wide gates, B, T, N, D]`, written where `T` is too narrow for them: what rounding to `T`
    /// takes away, itself rounded to `T`. The two together have twice the digits in half the room
    /// of the wide type. Of an infinite gate, whose saturated value is finite, the remainder is
    /// infinite.
    pub remainders: Option<Shared<'a, T>>,
}

/// The scratch memory of each thread.
#[derive(Clone, Copy)]
pub(crate) struct RecomputeRoom {
    h: Span,
    scratch: Span,
    /// Elements of a thread's part of each.
    lens: [usize; 2],
}

impl RecomputeRoom {
    pub fn new<V: Simd>(layout: &mut SpanLayout, panels: &Panels, threads: usize) -> Self {
        let lens = [CHUNK * panels.depth, V::ROWS * panels.outputs()];
        let [h, scratch] = lens.map(|len| layout.add::<V::Scalar>(threads.saturating_mul(len)));
        Self { h, scratch, lens }
    }
}

impl<T: Element> Recompute<'_, T> {
    /// # Safety
    /// The machine has `V`'s instruction set; nobody else uses the memory of `room`.
    pub unsafe fn run<V: Vector<T>>(
        &self,
        workers: &Workers,
        memory: Memory<'_>,
        room: RecomputeRoom,
    ) {
        let chunks = self.steps.chunks(CHUNK).len();
        // SAFETY: as promised by the caller.
        let (h, scratch) = unsafe { (memory.numbers(room.h), memory.numbers(room.scratch)) };
        let (h, scratch) = (Shared::new(h), Shared::new(scratch));
        let [h_len, scratch_len] = room.lens;
        workers.for_each(workers.threads(), self.time.shapes.heads * chunks, |me, i| {
            let (head, range) = (i / chunks, self.steps.chunk(i % chunks, CHUNK));
            // SAFETY: a thread's own.
            let (h, scratch) = unsafe {
                let h = h.slice(me * h_len, range.len() * self.panels.depth);
                (h, scratch.slice(me * scratch_len, scratch_len))
            };
            let (time, states, s0, steps) = (self.time, self.states, self.s0, self.steps);
            let stride = self.panels.depth;
            let gather = GatherH {
                time,
                head,
                states,
                s0,
                steps,
                range: range.clone(),
                out: &mut *h,
                stride,
            };
            // SAFETY: as promised by the caller; each task writes gates of its own head and steps.
            unsafe {
                For::<V, _>::run_vectorized(gather);
                For::<V, _>::run_vectorized(Chunk { call: self, head, range, h, scratch });
            }
        });
    }
}

/// Some steps of one head.
struct Chunk<'a, T: Element> {
    call: &'a Recompute<'a, T>,
    head: usize,
    range: std::ops::Range<usize>,
    /// `[steps, D]`
    h: &'a [T::Wide],
    scratch: &'a mut [T::Wide],
}

impl<T: Element, V: Vector<T>> Op for For<V, Chunk<'_, T>> {
    type Output = ();

    #[inline(always)]
    unsafe fn run(self) {
        let Chunk { call, head, range, h, scratch } = self.work;
        let (shapes, panels) = (call.time.shapes, &call.panels);
        let (d, units, inner) = (shapes.head_dim, shapes.units(), shapes.inner());
        let layout = GateLayout::new(shapes);
        for block in 0..panels.blocks() {
            for first in (0..range.len()).step_by(V::ROWS) {
                let rows = V::ROWS.min(range.len() - first);
                let product = Product {
                    panels,
                    block,
                    packed: &call.packed[head * panels.len()..][..panels.len()],
                    a: at(h, first * d, rows * d),
                    stride: d,
                    rows,
                    out: scratch.as_mut_ptr(),
                };
                // SAFETY: `scratch` has room for ROWS rows.
                unsafe { product.compute::<V>() };
                let start = range.start + first;
                for (r, (row, step)) in call.steps.range(start..start + rows).enumerate() {
                    let token = call.time.token(row, step);
                    for (i, vector) in panels.block_vectors(block).enumerate() {
                        let n = V::LANES.min(d - vector * V::LANES);
                        let column = head * d + vector * V::LANES;
                        for k in 0..shapes.gates {
                            // SAFETY: addresses lie in their tensors as the shapes say (`at` checks
                            // in debug builds); what is written belongs to this head and step.
                            unsafe {
                                let mut gate = <V as Storage<T::Wide>>::load_n(
                                    at(call.b, k * units + column, n),
                                    n,
                                );
                                if k >= inner {
                                    let position =
                                        (token * shapes.external + k - inner) * units + column;
                                    gate = gate
                                        + <V as Storage<T>>::load_n(at(call.wx, position, n), n);
                                }
                                if k < shapes.recurrent {
                                    let position = r * panels.outputs()
                                        + (i * shapes.recurrent + k) * V::LANES;
                                    gate = gate
                                        + <V as Storage<T::Wide>>::load(at(
                                            scratch,
                                            position,
                                            V::LANES,
                                        ));
                                }
                                let wide = shapes.wide_gates.iter().position(|&wide| wide == k);
                                if let Some((out, i)) = call.remainders.zip(wide) {
                                    let position = (i * shapes.tokens() + token) * units + column;
                                    let remainder = gate - Storage::<T>::rounded(gate);
                                    Storage::<T>::store_n(remainder, out.at(position, n), n);
                                }
                                let (external, position) = layout.position(k, token);
                                let out = if external { call.d_wx } else { call.d_inner };
                                Storage::<T>::store_state_n(gate, out.at(position + column, n), n);
                            }
                        }
                    }
                }
            }
        }
    }
}
