//! `d_r` and `d_b`: one large product and one sum, after the time loop.
//!
//! ```text
//! d_r[g, n, j, k] = Σ d_gate[g, n, j] h_{t-1}[n, k]      d_b[g, n, j] = Σ d_gate[g, n, j]      over all rows and steps
//! ```
//!
//! A task is a part of the units of a gate and head. It goes through all steps in chunks of a fixed
//! size and order, so that its bits do not depend on the number of threads.

use flashrnn_core::{Element, Shapes};

use crate::batched::gather::{GatherH, Steps, widen};
use crate::kernel::forward::GateLayout;
use crate::kernel::tile::Tile;
use crate::memory::{Memory, Shared, Span, SpanLayout};
use crate::schedule::tasks::Time;
use crate::simd::{For, Op, Simd, Storage, Vector};
use crate::threads::workers::Workers;

/// Terms of each sum that are added by one product.
const CHUNK: usize = 256;
/// Units of a task.
const UNITS: usize = 256;

/// The tensors of a call, as slices.
pub(crate) struct WeightGrad<'a, T: Element> {
    pub time: Time<'a>,
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

/// A part of the weight gradients: some units of a gate and head.
pub(crate) struct Part<'a, S> {
    pub gate: usize,
    pub head: usize,
    /// The first of the units.
    pub unit: usize,
    /// `[units, stride]`, of which the first D columns count; empty for gates without recurrent
    /// input.
    pub d_r: &'a [S],
    pub stride: usize,
    /// `[units]`
    pub d_b: &'a [S],
}

/// The scratch memory of each thread.
#[derive(Clone, Copy)]
pub(crate) struct WeightGradRoom {
    /// d_r, h, d_gate, d_b, sums: see [`WeightGrad::part`].
    spans: [Span; 5],
    /// Elements of a thread's part of each.
    lens: [usize; 5],
    /// D, filled up to whole vectors.
    stride: usize,
}

impl WeightGradRoom {
    pub fn new<V: Simd>(layout: &mut SpanLayout, shapes: &Shapes, threads: usize) -> Self {
        let stride = shapes.head_dim.next_multiple_of(V::LANES);
        let units = UNITS.min(shapes.head_dim);
        let lens = [units * stride, CHUNK * stride, CHUNK * units, units, units];
        let spans = lens.map(|len| layout.add::<V::Scalar>(threads.saturating_mul(len)));
        Self { spans, lens, stride }
    }
}

impl<T: Element> WeightGrad<'_, T> {
    /// Computes every part and gives it to `sink`.
    ///
    /// # Safety
    /// The machine has `V`'s instruction set; nobody else uses the memory of `room`.
    pub unsafe fn run<V: Vector<T>>(
        &self,
        workers: &Workers,
        memory: Memory<'_>,
        room: WeightGradRoom,
        sink: &(dyn Fn(Part<'_, T::Wide>) + Sync),
    ) {
        let shapes = self.time.shapes;
        // SAFETY: as promised by the caller.
        let spans = room.spans.map(|span| Shared::new(unsafe { memory.numbers::<T::Wide>(span) }));
        let parts = shapes.heads * shapes.gates * shapes.head_dim.div_ceil(UNITS);
        workers.for_each(workers.threads(), parts, |me, i| {
            let mut lens = room.lens.into_iter();
            // SAFETY: a thread's own.
            let own = spans.map(|span| lens.next().map(|len| unsafe { span.slice(me * len, len) }));
            let [Some(d_r), Some(h), Some(d_gate), Some(d_b), Some(sums)] = own else {
                unreachable!("there are as many lengths as spans")
            };
            // SAFETY: as promised by the caller.
            unsafe { self.part::<V>(i, room.stride, [d_r, h, d_gate, d_b, sums], sink) };
        });
    }

    /// Computes the `i`th part, in memory for `d_r [units, stride]`, `h [steps, stride]`, `d_gate
    /// [steps, units]`, and `d_b` and its sums over a chunk `[units]`.
    ///
    /// # Safety
    /// The machine has `V`'s instruction set.
    unsafe fn part<V: Vector<T>>(
        &self,
        i: usize,
        stride: usize,
        [d_r, h, d_gate, d_b, sums]: [&mut [T::Wide]; 5],
        sink: &(dyn Fn(Part<'_, T::Wide>) + Sync),
    ) {
        let shapes = self.time.shapes;
        let (d, blocks) = (shapes.head_dim, shapes.head_dim.div_ceil(UNITS));
        let (head, gate, block) =
            (i / blocks / shapes.gates, i / blocks % shapes.gates, i % blocks);
        let units = UNITS.min(d - block * UNITS);
        let recurrent = gate < shapes.recurrent;
        let (d_b, sums) = (&mut d_b[..units], &mut sums[..units]);
        let d_r = &mut d_r[..if recurrent { units * stride } else { 0 }];
        d_b.fill(T::Wide::default());
        d_r.fill(T::Wide::default());
        // The columns that fill up the last vector, which nobody writes.
        h.fill(T::Wide::default());
        for range in self.steps.chunks(CHUNK) {
            let n = range.len();
            let d_gate = &mut d_gate[..n * units];
            let (time, states, s0, steps) = (self.time, self.states, self.s0, self.steps);
            let column = head * d + block * UNITS;
            let gather = GatherGate {
                call: self,
                gate,
                column,
                range: range.clone(),
                out: &mut *d_gate,
                sums: &mut *sums,
            };
            // SAFETY: as promised by the caller.
            unsafe { For::<V, _>::run_vectorized(gather) };
            for (d_b, &sum) in d_b.iter_mut().zip(&*sums) {
                *d_b = *d_b + sum;
            }
            if recurrent {
                let h = &mut h[..n * stride];
                let gather = GatherH { time, head, states, s0, steps, range, out: &mut *h, stride };
                // SAFETY: as promised by the caller.
                unsafe {
                    For::<V, _>::run_vectorized(gather);
                    add_product::<V, T::Wide>(AddProduct {
                        out: &mut *d_r,
                        a: d_gate,
                        b: h,
                        units,
                        stride,
                    });
                }
            }
        }
        sink(Part { gate, head, unit: block * UNITS, d_r, stride, d_b });
    }
}

/// `out [units, stride] += aᵀ b` with `a [steps, units]` and `b [steps, stride]`, whose rows are
/// whole vectors.
struct AddProduct<'a, S> {
    out: &'a mut [S],
    a: &'a [S],
    b: &'a [S],
    units: usize,
    stride: usize,
}

/// A function of its own, so that it is compiled once for 16-bit and wide tensors.
///
/// # Safety
/// The machine has `V`'s instruction set.
#[inline(never)]
unsafe fn add_product<V: Storage<S> + Simd<Scalar = S>, S: Element>(work: AddProduct<'_, S>) {
    // SAFETY: as promised by the caller.
    unsafe { For::<V, _>::run_vectorized(work) }
}

impl<V: Storage<S> + Simd<Scalar = S>, S: Element> Op for For<V, AddProduct<'_, S>> {
    type Output = ();

    #[inline(always)]
    unsafe fn run(self) {
        let AddProduct { out, a, b, units, stride } = self.work;
        let depth = b.len() / stride;
        assert!(
            a.len() == depth * units
                && out.len() == units * stride
                && stride.is_multiple_of(V::LANES)
        );
        let vectors = stride / V::LANES;
        // A panel of `b` stays in the cache while all units pass over it.
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
                // SAFETY: rows and vectors are within the slices, whose sizes were just checked.
                unsafe { tile.compute::<V, true>(V::ROWS.min(units - unit), width) };
            }
        }
    }
}

/// The gradient of some units of a gate for some steps, and its sum over them.
struct GatherGate<'a, T: Element> {
    call: &'a WeightGrad<'a, T>,
    gate: usize,
    column: usize,
    range: std::ops::Range<usize>,
    /// `[steps, units]`, written.
    out: &'a mut [T::Wide],
    /// `[units]`, written.
    sums: &'a mut [T::Wide],
}

impl<T: Element, V: Vector<T>> Op for For<V, GatherGate<'_, T>> {
    type Output = ();

    #[inline(always)]
    unsafe fn run(self) {
        let GatherGate { call, gate, column, range, out, sums } = self.work;
        let layout = GateLayout::new(call.time.shapes);
        let units = sums.len();
        sums.fill(T::Wide::default());
        for ((row, step), out) in call.steps.range(range).zip(out.chunks_exact_mut(units)) {
            let (external, position) = layout.position(gate, call.time.token(row, step));
            let from = if external { call.d_wx } else { call.d_inner };
            // SAFETY: the slice's range is checked; the instruction set is the caller's promise.
            unsafe { widen::<T, V>(&from[position + column..][..units], out) };
            for (sum, &x) in sums.iter_mut().zip(&*out) {
                *sum = *sum + x;
            }
        }
    }
}
