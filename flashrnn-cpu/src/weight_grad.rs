//! `d_r` and `d_b`: one large product and one sum, after the time loop.
//!
//! ```text
//! d_r[g, n, j, k] = Σ d_gate[g, n, j] h_{t-1}[n, k]      d_b[g, n, j] = Σ d_gate[g, n, j]      over all rows and steps
//! ```
//!
//! A task is a part of the units of a gate and head. It goes through all steps in chunks of a fixed size and order, so
//! that its bits do not depend on the number of threads.

use rayon::prelude::*;

use flashrnn_core::{Element, Result};

use crate::forward::GateLayout;
use crate::gather::{GatherH, Steps, widen};
use crate::memory::filled;
use crate::simd::{For, Op, Vector};
use crate::tasks::Time;

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
    /// `[units, D]`; empty for gates without recurrent input.
    pub d_r: &'a [S],
    /// `[units]`
    pub d_b: &'a [S],
}

impl<T: Element> WeightGrad<'_, T> {
    /// Computes every part and gives it to `sink`.
    ///
    /// # Safety
    /// The machine has `V`'s instruction set.
    pub unsafe fn run<V: Vector<T>>(&self, sink: &(dyn Fn(Part<'_, T::Wide>) + Sync)) -> Result<()> {
        let shapes = self.time.shapes;
        let (d, blocks) = (shapes.head_dim, shapes.head_dim.div_ceil(UNITS));
        (0..shapes.heads * shapes.gates * blocks).into_par_iter().with_max_len(1).try_for_each(|i| {
            let (head, gate, block) = (i / blocks / shapes.gates, i / blocks % shapes.gates, i % blocks);
            let units = UNITS.min(d - block * UNITS);
            let recurrent = gate < shapes.recurrent;
            let zeros = |len| filled(T::Wide::default(), len);
            let mut d_b = zeros(units)?;
            let mut d_r = zeros(if recurrent { units * d } else { 0 })?;
            let mut d_gate = zeros(CHUNK * units)?;
            let mut h = zeros(if recurrent { CHUNK * d } else { 0 })?;
            let mut sums = zeros(units)?;
            for range in self.steps.chunks(CHUNK) {
                let n = range.len();
                let d_gate = &mut d_gate[..n * units];
                let (time, states, s0, steps) = (self.time, self.states, self.s0, self.steps);
                let gather = GatherGate {
                    call: self,
                    gate,
                    column: head * d + block * UNITS,
                    range: range.clone(),
                    out: d_gate,
                    sums: &mut sums,
                };
                // SAFETY: as promised by the caller.
                unsafe { For::<V, _>::run_vectorized(gather) };
                for (d_b, &sum) in d_b.iter_mut().zip(&sums) {
                    *d_b = *d_b + sum;
                }
                if recurrent {
                    let h = &mut h[..n * d];
                    // SAFETY: as promised by the caller.
                    unsafe {
                        For::<V, _>::run_vectorized(GatherH { time, head, states, s0, steps, range, out: h });
                        add_product(&mut d_r, d_gate, h, [units, d, n]);
                    }
                }
            }
            sink(Part { gate, head, unit: block * UNITS, d_r: &d_r, d_b: &d_b });
            Ok(())
        })
    }
}

/// `out [m, n] += aᵀ b` with `a [k, m]` and `b [k, n]`.
fn add_product<S: Element>(out: &mut [S], a: &[S], b: &[S], [m, n, k]: [usize; 3]) {
    assert!(out.len() == m * n && a.len() == k * m && b.len() == k * n);
    let one = S::from_f64(1.0);
    let stride = |n: usize| n as isize;
    // SAFETY: the strides keep within the slices, as just checked.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            stride(n),
            true,
            a.as_ptr(),
            stride(m),
            1,
            b.as_ptr(),
            1,
            stride(n),
            one,
            one,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
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
