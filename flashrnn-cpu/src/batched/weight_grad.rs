//! Computes `d_r` and `d_b` after the time loop, as one large product and one sum.
//!
//! ```text
//! d_r[g, n, j, k] = Σ d_gate[g, n, j] h_{t-1}[n, k]      over all rows and steps
//! d_b[g, n, j] = Σ d_gate[g, n, j]
//! ```
//!
//! A task computes some units of one gate and head. It sums over all steps in chunks of a fixed
//! size and in a fixed order, so the bits of its result do not depend on the number of threads.

use std::ops::Range;

use flashrnn_core::{Element, Shapes};

use super::gather::{GatherH, Steps, widen};
use crate::kernel::{GateLayout, Tile};
use crate::memory::{SharedSlice, Span, WorkspaceLayout, WorkspaceView};
use crate::schedule::TimeAxis;
use crate::simd::{Simd, SimdTask, Storage, Vector};
use crate::threads::Workers;

/// The number of steps that one product sums over.
const CHUNK_STEPS: usize = 256;
/// The number of units per task.
const TASK_UNITS: usize = 256;

/// The arguments of the pass that computes `d_r` and `d_b`.
pub(crate) struct WeightGrad<'a, T: Element> {
    pub time: TimeAxis<'a>,
    /// `[S, B, T, N, D]`
    pub states: &'a [T],
    /// `[S, B, N, D]`
    pub s0: Option<&'a [T::Wide]>,
    /// `[B, T, Gx, N, D]`
    pub d_wx: &'a [T],
    /// `[B, T, G - Gx, N, D]`
    pub d_inner: &'a [T],
    pub steps: &'a Steps<'a>,
}

/// The weight gradients of some units of one gate and head.
pub(crate) struct WeightGradPart<'a, S> {
    pub gate: usize,
    pub head: usize,
    /// The first of the units.
    pub unit: usize,
    /// `[units, stride]`; only the first D columns are used. Empty if the gate has no recurrent
    /// input.
    pub d_r: &'a [S],
    pub stride: usize,
    /// `[units]`
    pub d_b: &'a [S],
}

/// Receives the weight gradients. Called once per part, on any thread.
pub(crate) type WeightGradSink<'a, S> = &'a (dyn Fn(WeightGradPart<'_, S>) + Sync);

/// The scratch memory of all threads.
#[derive(Clone, Copy)]
pub(crate) struct WeightGradScratch {
    /// The arrays of [`ThreadScratch`], in order.
    spans: [Span; 5],
    /// The number of elements of each array per thread.
    lens: [usize; 5],
    /// D, padded to whole vectors.
    stride: usize,
}

/// The scratch memory of one thread.
struct ThreadScratch<'a, S> {
    /// `[units, stride]`
    d_r: &'a mut [S],
    /// `[steps, stride]`
    h: &'a mut [S],
    /// `[steps, units]`
    d_gate: &'a mut [S],
    /// `[units]`
    d_b: &'a mut [S],
    /// The sums of `d_gate` over a chunk, `[units]`.
    sums: &'a mut [S],
}

impl WeightGradScratch {
    /// Adds the scratch memory to a workspace.
    pub fn new<V: Simd>(layout: &mut WorkspaceLayout, shapes: &Shapes, threads: usize) -> Self {
        let stride = shapes.head_dim.next_multiple_of(V::LANES);
        let units = TASK_UNITS.min(shapes.head_dim);
        let lens = [units * stride, CHUNK_STEPS * stride, CHUNK_STEPS * units, units, units];
        let spans = lens.map(|len| layout.add::<V::Scalar>(threads.saturating_mul(len)));
        Self { spans, lens, stride }
    }
}

impl<T: Element> WeightGrad<'_, T> {
    /// Computes all parts and passes them to `sink`.
    ///
    /// # Safety
    /// The machine supports `V`'s instruction set; nothing else uses the memory of `scratch`.
    pub unsafe fn run<V: Vector<T>>(
        &self,
        workers: &Workers,
        memory: WorkspaceView<'_>,
        scratch: WeightGradScratch,
        sink: WeightGradSink<'_, T::Wide>,
    ) {
        let shapes = self.time.shapes;
        let WeightGradScratch { spans, lens, stride } = scratch;
        // SAFETY: guaranteed by the caller.
        let arrays = spans.map(|span| SharedSlice::new(unsafe { memory.slice::<T::Wide>(span) }));
        let parts = shapes.heads * shapes.gates * shapes.head_dim.div_ceil(TASK_UNITS);
        workers.for_each(workers.threads(), parts, |me, i| {
            // SAFETY: only this thread uses its part.
            let own = |k: usize| unsafe { arrays[k].slice(me * lens[k], lens[k]) };
            let scratch =
                ThreadScratch { d_r: own(0), h: own(1), d_gate: own(2), d_b: own(3), sums: own(4) };
            // SAFETY: guaranteed by the caller.
            unsafe { self.part::<V>(i, stride, scratch, sink) };
        });
    }

    /// Computes the `i`th part.
    ///
    /// # Safety
    /// The machine supports `V`'s instruction set.
    unsafe fn part<V: Vector<T>>(
        &self,
        i: usize,
        stride: usize,
        scratch: ThreadScratch<'_, T::Wide>,
        sink: WeightGradSink<'_, T::Wide>,
    ) {
        let shapes = self.time.shapes;
        let (d, blocks) = (shapes.head_dim, shapes.head_dim.div_ceil(TASK_UNITS));
        let (head, gate, unit) =
            (i / blocks / shapes.gates, i / blocks % shapes.gates, i % blocks * TASK_UNITS);
        let units = TASK_UNITS.min(d - unit);
        let recurrent = gate < shapes.recurrent;
        let ThreadScratch { d_r, h, d_gate, d_b, sums } = scratch;
        let (d_b, sums) = (&mut d_b[..units], &mut sums[..units]);
        let d_r = &mut d_r[..if recurrent { units * stride } else { 0 }];
        d_b.fill(T::Wide::default());
        d_r.fill(T::Wide::default());
        // This also zeroes the columns beyond D, which nothing else writes.
        h.fill(T::Wide::default());
        for range in self.steps.chunks(CHUNK_STEPS) {
            let n = range.len();
            let (h, d_gate) = (&mut h[..n * stride], &mut d_gate[..n * units]);
            let column = head * d + unit;
            let gather = GatherGate {
                call: self,
                gate,
                column,
                range: range.clone(),
                out: &mut *d_gate,
                sums: &mut *sums,
            };
            // SAFETY: guaranteed by the caller.
            unsafe { V::vectorize(gather) };
            for (d_b, &sum) in d_b.iter_mut().zip(&*sums) {
                *d_b = *d_b + sum;
            }
            if recurrent {
                let gather = GatherH {
                    time: self.time,
                    head,
                    states: self.states,
                    s0: self.s0,
                    steps: self.steps,
                    range,
                    out: &mut *h,
                    stride,
                };
                // SAFETY: guaranteed by the caller.
                unsafe {
                    V::vectorize(gather);
                    AddProduct { out: &mut *d_r, a: d_gate, b: h, units, stride }.compute::<V>();
                }
            }
        }
        sink(WeightGradPart { gate, head, unit, d_r, stride, d_b });
    }
}

/// `out [units, stride] += aᵀ b` with `a [steps, units]` and `b [steps, stride]`, where `stride` is
/// a multiple of LANES.
struct AddProduct<'a, S> {
    out: &'a mut [S],
    a: &'a [S],
    b: &'a [S],
    units: usize,
    stride: usize,
}

impl<S: Element> AddProduct<'_, S> {
    /// Adds the product.
    ///
    /// # Safety
    /// The machine supports `V`'s instruction set.
    // Not inlined, so that it is compiled once for 16-bit and wide tensors.
    #[inline(never)]
    unsafe fn compute<V: Storage<S> + Simd<Scalar = S>>(self) {
        // SAFETY: guaranteed by the caller.
        unsafe { V::vectorize(self) }
    }
}

impl<V: Storage<S> + Simd<Scalar = S>, S: Element> SimdTask<V> for AddProduct<'_, S> {
    #[inline(always)]
    unsafe fn run(self) {
        let AddProduct { out, a, b, units, stride } = self;
        let depth = b.len() / stride;
        assert!(
            a.len() == depth * units
                && out.len() == units * stride
                && stride.is_multiple_of(V::LANES)
        );
        let vectors = stride / V::LANES;
        // All units pass over a panel of `b` while it is in the cache.
        for first in (0..vectors).step_by(V::PANEL) {
            let (width, column) = (V::PANEL.min(vectors - first), first * V::LANES);
            for unit in (0..units).step_by(V::ROWS) {
                let tile = Tile {
                    depth,
                    a: a.as_ptr().wrapping_add(unit),
                    stride: units,
                    b: b.as_ptr().wrapping_add(column),
                    step: stride,
                    out: out.as_mut_ptr().wrapping_add(unit * stride + column),
                    out_stride: stride,
                };
                // SAFETY: rows and vectors are within the slices, whose lengths are checked above.
                unsafe { tile.compute::<V, true>(V::ROWS.min(units - unit), width) };
            }
        }
    }
}

/// Gathers a gate's gradient for some units and steps, and sums it over the steps.
struct GatherGate<'a, T: Element> {
    call: &'a WeightGrad<'a, T>,
    gate: usize,
    /// The first of the units, counted over all heads.
    column: usize,
    range: Range<usize>,
    /// `[steps, units]`, written.
    out: &'a mut [T::Wide],
    /// `[units]`, written.
    sums: &'a mut [T::Wide],
}

impl<T: Element, V: Vector<T>> SimdTask<V> for GatherGate<'_, T> {
    #[inline(always)]
    unsafe fn run(self) {
        let GatherGate { call, gate, column, range, out, sums } = self;
        let layout = GateLayout::new(call.time.shapes);
        let units = sums.len();
        sums.fill(T::Wide::default());
        for ((row, step), out) in call.steps.range(range).zip(out.chunks_exact_mut(units)) {
            let token = call.time.token(row, step);
            let (from, offset) = layout.locate(gate, token, [call.d_wx, call.d_inner]);
            // SAFETY: guaranteed by the caller.
            unsafe { widen::<T, V>(&from[offset + column..][..units], out) };
            for (sum, &x) in sums.iter_mut().zip(&*out) {
                *sum = *sum + x;
            }
        }
    }
}
