//! The backward pass of a task, from its last step to its first, and one more that leaves `d_s0`.
//!
//! ```text
//! for each step from the last, for each block of units, for each few rows:
//!     d_state = d_last at a row's own end, else
//!               d_state + [h: clip(Rᵀ d_gates of the step after)], or 0 if the step after was reset
//!     d_state += d_states[t]
//!     (d_state, d_gates) = Pᵀ(state before, gates, d_state)
//!     store d_wx, and `d_gates` for the products of the step before
//! ```
//!
//! As in the forward pass, `d_gates` has two halves, so that a step needs one barrier only.

use flashrnn_core::{Array, Cell, CellSizes, Element};

use crate::cell_kernel::{Blocks, With};
use crate::kernel::forward::GateLayout;
use crate::kernel::product::{Panels, Product};
use crate::memory::{Shared, at};
use crate::schedule::tasks::{Before, Row, Task, Time, active};
use crate::schedule::time_loop::Pass;
use crate::simd::{For, Op, Storage, Vector, prefetch};

/// The tensors of a call, as slices.
pub(crate) struct BackwardCall<'a, T, S> {
    pub time: Time<'a>,
    pub forward_clip: Option<f64>,
    /// The bound of the recurrent gradient; None where it is not clipped.
    pub recurrent_grad_clip: Option<f64>,
    pub cut_recurrent_grad: bool,
    pub panels: Panels,
    /// `[N, panels.len()]`
    pub packed: &'a [S],
    /// `[S, B, T, N, D]`
    pub states: &'a [T],
    /// `[S, B, N, D]`
    pub s0: Option<&'a [S]>,
    /// `[wide states, B, T, N, D]`, where those of `states` are not exact.
    pub wide: Option<&'a [S]>,
    /// `[wide gates, B, T, N, D]`, where those of `gates` are not exact.
    pub wide_gates: Option<&'a [S]>,
    /// `[wide gates, B, T, N, D]`: what recomputed gates lack in `d_wx` and `d_inner`.
    pub remainders: Option<&'a [T]>,
    /// The gates; where they were recomputed, None, and they stand where `d_wx` and `d_inner` will.
    pub gates: Option<&'a [T]>,
    /// `[1 or S, B, T, N, D]`: the gradient of the first states.
    pub d_states: Option<&'a [T]>,
    /// 1 or S.
    pub d_states_given: usize,
    /// `[S, B, N, D]`
    pub d_last: Option<&'a [S]>,
    /// `[B, T, Gx, N, D]`
    pub d_wx: Shared<'a, T>,
    /// `[B, T, G - Gx, N, D]`: the gradient of the gates without external input.
    pub d_inner: Shared<'a, T>,
    /// `[S, B, N, D]`
    pub d_s0: Option<Shared<'a, S>>,
}

impl<T: Element> BackwardCall<'_, T, T::Wide> {
    /// Asks for a cache line of units in a step.
    #[inline(always)]
    fn prefetch(&self, token: usize, before: Before, column: usize) {
        let shapes = self.time.shapes;
        let (units, tokens) = (shapes.units(), shapes.tokens());
        let layout = GateLayout::new(shapes);
        for k in 0..shapes.gates {
            if let Some(gates) = self.gates {
                prefetch(gates.as_ptr().wrapping_add(layout.place(k, token) + column));
            }
            let (external, position) = layout.position(k, token);
            prefetch(if external { self.d_wx } else { self.d_inner }.at(position + column, 0));
        }
        if let Some(d_states) = self.d_states {
            prefetch(d_states.as_ptr().wrapping_add(token * units + column));
        }
        if let Before::Token(token) = before {
            for k in 0..shapes.states {
                prefetch(self.states.as_ptr().wrapping_add((k * tokens + token) * units + column));
            }
        }
    }
}

/// What a task carries from step to step.
pub(crate) struct BackwardData<'a, S> {
    /// `[rows, S, vectors · LANES]`: the gradient of the state.
    d_state: Shared<'a, S>,
    /// `[2, rows, Gr, D]`: the gradient of the gates, read and written in turn.
    d_gates: Shared<'a, S>,
}

/// The backward pass of a cell.
pub(crate) struct BackwardPass<'a, T: Element> {
    /// Compiled for an instruction set that the machine has.
    pub cell: &'a dyn Blocks<T>,
    pub call: BackwardCall<'a, T, T::Wide>,
}

impl<T: Element> Pass<T::Wide> for BackwardPass<'_, T> {
    type Data<'a> = BackwardData<'a, T::Wide>;

    fn data<'a>(
        &self,
        d_state: Shared<'a, T::Wide>,
        d_gates: Shared<'a, T::Wide>,
    ) -> Self::Data<'a> {
        BackwardData { d_state, d_gates }
    }

    unsafe fn begin(&self, task: &Task<'_, BackwardData<'_, T::Wide>>) {
        // SAFETY: as promised by the caller.
        unsafe { begin(&self.call, task) }
    }

    /// One for each step of the task's longest row, and one for `d_s0`.
    fn steps(&self, task: &Task<'_, BackwardData<'_, T::Wide>>) -> usize {
        task.rows.first().map_or(0, |row| row.length) + usize::from(self.call.d_s0.is_some())
    }

    unsafe fn block(
        &self,
        task: &Task<'_, BackwardData<'_, T::Wide>>,
        iteration: usize,
        block: usize,
        scratch: &mut [T::Wide],
    ) {
        // SAFETY: as promised by the caller; the machine has the cell's instruction set.
        unsafe {
            self.cell.backward(BackwardBlock { call: &self.call, task, iteration, block, scratch })
        }
    }
}

/// Writes zeros to `d_wx` beyond the rows' lengths.
///
/// # Safety
/// No other thread uses `d_wx` of the task's rows and head.
unsafe fn begin<T: Element>(
    call: &BackwardCall<'_, T, T::Wide>,
    task: &Task<'_, BackwardData<'_, T::Wide>>,
) {
    let shapes = call.time.shapes;
    for row in task.rows {
        for t in row.length..shapes.time {
            for k in 0..shapes.external {
                let position = (shapes.token(row.b, t) * shapes.external + k) * shapes.units();
                let position = position + task.head * shapes.head_dim;
                // SAFETY: by the caller's promise.
                unsafe { call.d_wx.slice(position, shapes.head_dim) }.fill(T::default());
            }
        }
    }
}

/// A block of units of all rows of a task that have the step.
pub(crate) struct BackwardBlock<'a, T: Element> {
    pub call: &'a BackwardCall<'a, T, T::Wide>,
    pub task: &'a Task<'a, BackwardData<'a, T::Wide>>,
    /// Counted backwards: 0 is the last step of the longest row.
    pub iteration: usize,
    pub block: usize,
    /// Room for [`ROWS`](crate::simd::Simd::ROWS) rows of [`Panels::outputs`].
    pub scratch: &'a mut [T::Wide],
}

impl<C: Cell, T: Element, V: Vector<T>> Op for For<V, With<'_, C, BackwardBlock<'_, T>>> {
    type Output = ();

    #[inline(always)]
    unsafe fn run(self) {
        let With { cell, work: BackwardBlock { call, task, iteration, block, scratch } } =
            self.work;
        let (d, depth) = (call.time.shapes.head_dim, call.panels.depth);
        let padded = call.panels.vectors() * V::LANES;
        let longest = task.rows.first().map_or(0, |row| row.length);
        // The step, counted forwards; None is the one that leaves d_s0.
        let step = (longest - iteration.min(longest)).checked_sub(1);
        // Rows that have this step, and those of them that have the step after it: both the first
        // so many.
        let running = step.map_or(task.rows.len(), |step| active(task.rows, step));
        let after = active(task.rows, step.map_or(0, |step| step + 1));
        let from = (iteration + 1) % 2 * task.rows.len() * depth;
        let stride = call.panels.outputs();
        let tiles = running.div_ceil(V::ROWS);
        for tile in 0..tiles {
            let (first, end) = (tile * running / tiles, (tile + 1) * running / tiles);
            // What the pointwise stage will touch comes from memory while the product runs.
            if let Some(step) = step {
                for &row in &task.rows[first..end] {
                    let (token, before) = (call.time.token(row, step), call.time.before(row, step));
                    for unit in call.panels.block_lines::<T>(block) {
                        call.prefetch(token, before, task.head * d + unit);
                    }
                }
            }
            let continued = after.clamp(first, end) - first;
            if continued > 0 && !call.cut_recurrent_grad {
                let product = Product {
                    panels: &call.panels,
                    block,
                    packed: &call.packed[task.head * call.panels.len()..][..call.panels.len()],
                    a: task.data.d_gates.at(from + first * depth, continued * depth),
                    stride: depth,
                    rows: continued,
                    out: scratch.as_mut_ptr(),
                };
                // SAFETY: `scratch` has room for ROWS rows; nobody writes this half of `d_gates`
                // now.
                unsafe { product.compute::<V>() };
            }
            for r in first..end {
                let row = task.rows[r];
                let next = step.map_or(0, |step| step + 1);
                let units = RowUnits {
                    cell,
                    call,
                    task,
                    r,
                    row,
                    end: next == row.length,
                    reset_after: next < row.length && call.time.reset(row, next),
                    at: step.map(|step| (call.time.token(row, step), call.time.before(row, step))),
                    to: iteration % 2 * task.rows.len() * depth,
                    padded,
                };
                for (i, vector) in call.panels.block_vectors(block).enumerate() {
                    let product = at(scratch, (r - first) * stride + i * V::LANES, V::LANES);
                    // SAFETY: the vector of units belongs to the block, and with it to this thread.
                    unsafe {
                        if (vector + 1) * V::LANES <= d {
                            units.vector::<V, true>(vector, product);
                        } else {
                            units.vector::<V, false>(vector, product);
                        }
                    }
                }
            }
        }
    }
}

/// One row in one step.
struct RowUnits<'a, C: Cell, T: Element> {
    cell: &'a C,
    call: &'a BackwardCall<'a, T, T::Wide>,
    task: &'a Task<'a, BackwardData<'a, T::Wide>>,
    /// The row's place in the task.
    r: usize,
    row: Row,
    /// Whether the row has no step after this one.
    end: bool,
    /// Whether the state is zeroed before the row's step after this one.
    reset_after: bool,
    /// The step's token and what lies before it; None for the iteration that leaves `d_s0`.
    at: Option<(usize, Before)>,
    /// The half of `d_gates` that this step writes.
    to: usize,
    /// The units of a row with those that fill up its last vector.
    padded: usize,
}

impl<C: Cell, T: Element> RowUnits<'_, C, T> {
    /// The pointwise stage of one vector of units, `FULL` if it has all its lanes.
    ///
    /// # Safety
    /// No other thread uses these units of the row; `product [LANES]` is valid.
    #[inline(always)]
    unsafe fn vector<V: Vector<T>, const FULL: bool>(
        &self,
        vector: usize,
        product: *const T::Wide,
    ) {
        let Self { call, task, row, .. } = *self;
        let shapes = call.time.shapes;
        let (d, units, tokens) = (shapes.head_dim, shapes.units(), shapes.tokens());
        let states = C::S;
        let first = vector * V::LANES;
        let n = if FULL { V::LANES } else { d - first };
        let column = task.head * d + first;
        let padded = self.padded;
        let zero = V::lit(0.0);
        // SAFETY: every address lies in its tensor, n elements from its end at least, as the shapes
        // say (and `at` checks in debug builds); what is written belongs to these units of this
        // row.
        unsafe {
            let carried =
                |k| task.data.d_state.at((self.r * states + k) * padded + first, V::LANES);
            let per_row = |k| (k * shapes.batch + row.b) * units + column;
            let mut d_after = C::State::<V>::splat(zero);
            for (k, d_state) in d_after.as_mut().iter_mut().enumerate() {
                *d_state = if self.end {
                    match call.d_last {
                        Some(d_last) if !C::CONSTANT.contains(&k) => {
                            <V as Storage<T::Wide>>::load_n(at(d_last, per_row(k), n), n)
                        }
                        _ => zero,
                    }
                } else if self.reset_after {
                    zero
                } else {
                    let mut d_state = <V as Storage<T::Wide>>::load(carried(k));
                    if k == 0 && !call.cut_recurrent_grad {
                        let mut d_h = <V as Storage<T::Wide>>::load(product);
                        if let Some(v) = call.recurrent_grad_clip {
                            d_h = d_h.clamp_max(V::lit(v)).clamp_min(V::lit(-v));
                        }
                        d_state = d_state + d_h;
                    }
                    d_state
                };
            }
            let Some((token, before)) = self.at else {
                if let Some(d_s0) = call.d_s0 {
                    for (k, &d_state) in d_after.as_ref().iter().enumerate() {
                        Storage::<T::Wide>::store_n(d_state, d_s0.at(per_row(k), n), n);
                    }
                }
                return;
            };
            let per_token = |k: usize, token: usize| (k * tokens + token) * units + column;
            if let Some(d_states) = call.d_states {
                for (k, d_after) in
                    d_after.as_mut().iter_mut().enumerate().take(call.d_states_given)
                {
                    *d_after = *d_after
                        + <V as Storage<T>>::load_n(at(d_states, per_token(k, token), n), n);
                }
            }
            let mut state = C::State::<V>::splat(zero);
            for (k, s) in state.as_mut().iter_mut().enumerate() {
                *s = match before {
                    Before::Zero => zero,
                    Before::Initial => match call.s0 {
                        Some(s0) => <V as Storage<T::Wide>>::load_n(at(s0, per_row(k), n), n),
                        None => zero,
                    },
                    Before::Token(token) => {
                        match (call.wide, C::WIDE.iter().position(|&wide| wide == k)) {
                            (Some(wide), Some(i)) => {
                                <V as Storage<T::Wide>>::load_n(at(wide, per_token(i, token), n), n)
                            }
                            _ => <V as Storage<T>>::load_n(
                                at(call.states, per_token(k, token), n),
                                n,
                            ),
                        }
                    }
                };
            }
            let layout = GateLayout::of::<C>(shapes);
            let gradient = |k: usize| {
                let (external, position) = layout.position(k, token);
                if external {
                    call.d_wx.at(position + column, n)
                } else {
                    call.d_inner.at(position + column, n)
                }
            };
            let mut gates = C::Gates::<V>::splat(zero);
            for (k, gate) in gates.as_mut().iter_mut().enumerate() {
                let wide = C::WIDE_GATES.iter().position(|&wide| wide == k);
                *gate = match (call.wide_gates.zip(wide), call.gates) {
                    (Some((gates, i)), _) => {
                        <V as Storage<T::Wide>>::load_n(at(gates, per_token(i, token), n), n)
                    }
                    (None, Some(gates)) => {
                        <V as Storage<T>>::load_n(at(gates, layout.place(k, token) + column, n), n)
                    }
                    (None, None) => {
                        let rounded = <V as Storage<T>>::load_n(gradient(k), n);
                        match call.remainders.zip(wide) {
                            Some((remainders, i)) => {
                                let position = per_token(i, token);
                                rounded + <V as Storage<T>>::load_n(at(remainders, position, n), n)
                            }
                            None => rounded,
                        }
                    }
                };
            }
            if let Some(v) = call.forward_clip {
                let h = self.cell.forward(state, gates).as_ref()[0];
                let d_h = &mut d_after.as_mut()[0];
                *d_h = V::select(h.abs().gt(V::lit(v)), zero, *d_h);
            }
            let (d_state, d_gates) = self.cell.backward(state, gates, d_after);
            for (k, &d_state) in d_state.as_ref().iter().enumerate() {
                Storage::<T::Wide>::store(d_state, carried(k));
            }
            for (k, &d_gate) in d_gates.as_ref().iter().enumerate() {
                Storage::<T>::store_n(d_gate, gradient(k), n);
                if k < C::GR {
                    let position = self.to + self.r * call.panels.depth + k * d + first;
                    Storage::<T::Wide>::store_n(d_gate, task.data.d_gates.at(position, n), n);
                }
            }
        }
    }
}
