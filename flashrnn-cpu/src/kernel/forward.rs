//! The forward pass of a task: a block of units of its rows, one step at a time.
//!
//! ```text
//! for each step, for each block of units, for each few rows:
//!     gates = R h                          (product.rs, from `h` of the step before)
//!     gates += wx[t] + b;  state = P(state, gates);  clip
//!     store outputs, `state`, and `h` rounded to T for the next step's products
//! ```
//!
//! A reset is carried out by the step before it, which leaves a zero `h` and `state` behind; `h`
//! has two halves, one read while the other is written, so that a step needs one barrier only.

use flashrnn_core::{Array, Cell, CellSizes, Element, Real};

use crate::cell_kernel::{Blocks, With};
use crate::kernel::product::{Panels, Product};
use crate::memory::{Shared, at};
use crate::schedule::tasks::{Row, Task, Time, active};
use crate::schedule::time_loop::Pass;
use crate::simd::{For, LINE, Op, Pair, Storage, Vector, prefetch};

/// The tensors of a call, as slices.
pub(crate) struct ForwardCall<'a, T, S> {
    pub time: Time<'a>,
    pub forward_clip: Option<f64>,
    pub panels: Panels,
    /// `[N, panels.len()]`
    pub packed: &'a [S],
    /// `[G, N, D]`
    pub b: &'a [S],
    /// `[B, T, Gx, N, D]`
    pub wx: &'a [T],
    /// `[S, B, N, D]`
    pub s0: Option<&'a [S]>,
    /// `[B, T, N, D]`
    pub h: Option<Shared<'a, T>>,
    /// `[S, B, T, N, D]`
    pub states: Option<Shared<'a, T>>,
    /// `[S, B, N, D]`
    pub last: Option<Shared<'a, S>>,
    /// See [`GateLayout`].
    pub gates: Option<Shared<'a, T>>,
    /// `[wide states, B, T, N, D]`, then `[wide gates, B, T, N, D]` if gates are saved.
    pub wide: Option<Shared<'a, S>>,
}

impl<T: Element> ForwardCall<'_, T, T::Wide> {
    /// Asks for a cache line of units in a step.
    #[inline(always)]
    fn prefetch(&self, wide: usize, token: usize, column: usize) {
        let shapes = self.time.shapes;
        let (units, tokens) = (shapes.units(), shapes.tokens());
        for k in 0..shapes.external {
            prefetch(self.wx.as_ptr().wrapping_add((token * shapes.external + k) * units + column));
        }
        let layout = GateLayout::new(shapes);
        if let Some(gates) = self.gates {
            for k in 0..shapes.gates {
                prefetch(gates.at(layout.place(k, token) + column, 0));
            }
        }
        if let Some(states) = self.states {
            for k in 0..shapes.states {
                prefetch(states.at((k * tokens + token) * units + column, 0));
            }
        }
        if let Some(h) = self.h {
            prefetch(h.at(token * units + column, 0));
        }
        if let Some(states) = self.wide {
            for i in 0..wide {
                let line = states.at((i * tokens + token) * units + column, 0);
                prefetch(line);
                prefetch(line.wrapping_byte_add(LINE));
            }
        }
    }
}

/// Where gates are kept: the external ones like `wx [B, T, Gx, N, D]`, then the others `[B, T, G -
/// Gx, N, D]`.
#[derive(Clone, Copy)]
pub(crate) struct GateLayout {
    units: usize,
    inner: usize,
    external: usize,
    tokens: usize,
}

impl GateLayout {
    pub fn new(shapes: &flashrnn_core::Shapes) -> Self {
        let (units, inner) = (shapes.units(), shapes.inner());
        Self { units, inner, external: shapes.external, tokens: shapes.tokens() }
    }

    /// The same with the cell's own numbers of gates, which the compiler knows.
    #[inline(always)]
    pub fn of<C: Cell>(shapes: &flashrnn_core::Shapes) -> Self {
        let gates = C::G;
        let (inner, external) = (gates - C::GX, C::GX);
        Self { units: shapes.units(), inner, external, tokens: shapes.tokens() }
    }

    /// Where a token's units of a gate lie: in the first part for external gates, else in the
    /// second.
    #[inline(always)]
    pub fn position(&self, gate: usize, token: usize) -> (bool, usize) {
        if gate >= self.inner {
            (true, (token * self.external + gate - self.inner) * self.units)
        } else {
            (false, (token * self.inner + gate) * self.units)
        }
    }

    /// The same place, counted from the start of the first part.
    #[inline(always)]
    pub fn place(&self, gate: usize, token: usize) -> usize {
        let (external, position) = self.position(gate, token);
        if external { position } else { self.tokens * self.external * self.units + position }
    }
}

/// What a task carries from step to step.
pub(crate) struct ForwardData<'a, S> {
    /// `[rows, S, vectors · LANES]`: the state in full.
    state: Shared<'a, S>,
    /// `[2, rows, D]`: h rounded to T, read and written in turn.
    h: Shared<'a, S>,
}

impl<'a, S> ForwardData<'a, S> {
    pub fn new(state: Shared<'a, S>, h: Shared<'a, S>) -> Self {
        Self { state, h }
    }
}

/// The forward pass of a cell.
pub(crate) struct ForwardPass<'a, T: Element> {
    /// Compiled for an instruction set that the machine has.
    pub cell: &'a dyn Blocks<T>,
    pub call: ForwardCall<'a, T, T::Wide>,
}

impl<T: Element> Pass<T::Wide> for ForwardPass<'_, T> {
    type Data<'a> = ForwardData<'a, T::Wide>;

    fn data<'a>(
        &self,
        state: Shared<'a, T::Wide>,
        h: Shared<'a, T::Wide>,
    ) -> ForwardData<'a, T::Wide> {
        ForwardData::new(state, h)
    }

    unsafe fn begin(&self, task: &Task<'_, ForwardData<'_, T::Wide>>) {
        // SAFETY: as promised by the caller.
        unsafe { begin(&self.call, task) }
    }

    fn steps(&self, task: &Task<'_, ForwardData<'_, T::Wide>>) -> usize {
        task.rows.first().map_or(0, |row| row.length)
    }

    unsafe fn block(
        &self,
        task: &Task<'_, ForwardData<'_, T::Wide>>,
        step: usize,
        block: usize,
        scratch: &mut [T::Wide],
    ) {
        // SAFETY: as promised by the caller; the machine has the cell's instruction set.
        unsafe { self.cell.forward(ForwardBlock { call: &self.call, task, step, block, scratch }) }
    }
}

/// Fills a task's state from `s0`, and writes what no step writes: zeros beyond the rows' lengths,
/// and the last state of rows without steps.
///
/// # Safety
/// No other thread uses the task's data or the outputs of its rows and head.
unsafe fn begin<T: Element>(
    call: &ForwardCall<'_, T, T::Wide>,
    task: &Task<'_, ForwardData<'_, T::Wide>>,
) {
    let shapes = call.time.shapes;
    let (d, units, tokens) = (shapes.head_dim, shapes.units(), shapes.tokens());
    let padded = call.panels.vectors() * call.panels.lanes;
    let column = task.head * d;
    for (r, &row) in task.rows.iter().enumerate() {
        let reset = row.length > 0 && call.time.reset(row, 0);
        for k in 0..shapes.states {
            let initial = call.s0.map(|s0| &s0[(k * shapes.batch + row.b) * units + column..][..d]);
            // SAFETY: the task's own, by the caller's promise.
            let state = unsafe { task.data.state.slice((r * shapes.states + k) * padded, padded) };
            let (state, padding) = state.split_at_mut(d);
            padding.fill(T::Wide::default());
            match initial {
                Some(initial) if !reset => state.copy_from_slice(initial),
                _ => state.fill(T::Wide::default()),
            }
            if k == 0 {
                // SAFETY: as above.
                let h = unsafe { task.data.h.slice(r * d, d) };
                for (h, &s) in h.iter_mut().zip(&*state) {
                    *h = T::saturating_from_wide(s).to_wide();
                }
            }
            if let Some(last) = call.last
                && row.length == 0
            {
                // SAFETY: the head's columns of this row, by the caller's promise.
                let last = unsafe { last.slice((k * shapes.batch + row.b) * units + column, d) };
                match initial {
                    Some(initial) => last.copy_from_slice(initial),
                    None => last.fill(T::Wide::default()),
                }
            }
            for out in [call.h.filter(|_| k == 0), call.states].into_iter().flatten() {
                for t in row.length..shapes.time {
                    let token = shapes.token(row.b, t);
                    // SAFETY: as above.
                    unsafe { out.slice((k * tokens + token) * units + column, d) }
                        .fill(T::default());
                }
            }
        }
    }
}

/// A block of units of all rows of a task that have the step.
pub(crate) struct ForwardBlock<'a, T: Element> {
    pub call: &'a ForwardCall<'a, T, T::Wide>,
    pub task: &'a Task<'a, ForwardData<'a, T::Wide>>,
    pub step: usize,
    pub block: usize,
    /// Room for [`ROWS`](crate::simd::Simd::ROWS) rows of [`Panels::outputs`].
    pub scratch: &'a mut [T::Wide],
}

impl<C: Cell, T: Element, V: Vector<T>> Op for For<V, With<'_, C, ForwardBlock<'_, T>>> {
    type Output = ();

    #[inline(always)]
    unsafe fn run(self) {
        let With { cell, work: ForwardBlock { call, task, step, block, scratch } } = self.work;
        let d = call.time.shapes.head_dim;
        let padded = call.panels.vectors() * V::LANES;
        let running = active(task.rows, step);
        let tiles = running.div_ceil(V::ROWS);
        // The half of h that this step reads.
        let from = step % 2 * task.rows.len() * d;
        let stride = call.panels.outputs();
        for tile in 0..tiles {
            let (first, end) = (tile * running / tiles, (tile + 1) * running / tiles);
            // What the pointwise stage will touch comes from memory while the product runs.
            for &row in &task.rows[first..end] {
                let token = call.time.token(row, step);
                for unit in call.panels.block_lines::<T>(block) {
                    call.prefetch(C::WIDE.len(), token, task.head * d + unit);
                }
            }
            let product = Product {
                panels: &call.panels,
                block,
                packed: &call.packed[task.head * call.panels.len()..][..call.panels.len()],
                a: task.data.h.at(from + first * d, (end - first) * d),
                stride: d,
                rows: end - first,
                out: scratch.as_mut_ptr(),
            };
            // SAFETY: `scratch` has room for ROWS rows; nobody writes this half of `h` during the
            // step.
            unsafe { product.compute::<V>() };
            for r in first..end {
                let row = task.rows[r];
                let units = RowUnits {
                    cell,
                    call,
                    task,
                    r,
                    row,
                    token: call.time.token(row, step),
                    ends: step + 1 == row.length,
                    reset_next: step + 1 < row.length && call.time.reset(row, step + 1),
                    to: (step + 1) % 2 * task.rows.len() * d,
                    padded,
                };
                let vectors = call.panels.block_vectors(block);
                let start = (r - first) * stride;
                // SAFETY: the block's units belong to this thread; the products of a row are
                // `start` on in `scratch`.
                unsafe { units.vectors::<V>(vectors, at(scratch, start, stride)) };
            }
        }
    }
}

/// One row in one step.
struct RowUnits<'a, C: Cell, T: Element> {
    cell: &'a C,
    call: &'a ForwardCall<'a, T, T::Wide>,
    task: &'a Task<'a, ForwardData<'a, T::Wide>>,
    /// The row's place in the task.
    r: usize,
    row: Row,
    token: usize,
    /// Whether this is the row's last step.
    ends: bool,
    /// Whether the state is zeroed before the row's next step.
    reset_next: bool,
    /// The half of `h` that this step writes.
    to: usize,
    /// The units of a row with those that fill up its last vector.
    padded: usize,
}

impl<C: Cell, T: Element> RowUnits<'_, C, T> {
    /// The pointwise stage of a block's units, two vectors at a time where registers hold them.
    ///
    /// # Safety
    /// No other thread uses these units of the row; `products [vectors, Gr, LANES]` is valid.
    #[inline(always)]
    unsafe fn vectors<V: Vector<T>>(
        &self,
        mut vectors: std::ops::Range<usize>,
        mut products: *const T::Wide,
    ) {
        let kinds = C::GR * V::LANES;
        let full = self.call.time.shapes.head_dim / V::LANES;
        while V::PAIRS && vectors.start + 2 <= vectors.end.min(full) {
            let (a, b) = (vectors.start, vectors.start + 1);
            // SAFETY: as promised by the caller.
            unsafe {
                let (state_a, gates_a) = self.load::<V, true>(a, products);
                let (state_b, gates_b) = self.load::<V, true>(b, products.wrapping_add(kinds));
                let (zero, mut after_a, mut after_b) = (Pair::lit(0.0), state_a, state_b);
                let mut state = C::State::<Pair<V>>::splat(zero);
                for (k, s) in state.as_mut().iter_mut().enumerate() {
                    *s = Pair(state_a.as_ref()[k], state_b.as_ref()[k]);
                }
                let mut gates = C::Gates::<Pair<V>>::splat(zero);
                for (k, g) in gates.as_mut().iter_mut().enumerate() {
                    *g = Pair(gates_a.as_ref()[k], gates_b.as_ref()[k]);
                }
                let after = self.cell.forward(state, gates);
                for (k, &Pair(s_a, s_b)) in after.as_ref().iter().enumerate() {
                    after_a.as_mut()[k] = s_a;
                    after_b.as_mut()[k] = s_b;
                }
                self.store::<V, true>(a, gates_a, after_a);
                self.store::<V, true>(b, gates_b, after_b);
            }
            vectors.start += 2;
            products = products.wrapping_add(2 * kinds);
        }
        for vector in vectors {
            // SAFETY: as promised by the caller.
            unsafe {
                if vector < full {
                    let (state, gates) = self.load::<V, true>(vector, products);
                    self.store::<V, true>(vector, gates, self.cell.forward(state, gates));
                } else {
                    let (state, gates) = self.load::<V, false>(vector, products);
                    self.store::<V, false>(vector, gates, self.cell.forward(state, gates));
                }
            }
            products = products.wrapping_add(kinds);
        }
    }

    /// How many gates take recurrent input only: the first G - Gx.
    const INNER: usize = C::G - C::GX;

    /// The state before the step, and the gates, of a vector of units, `FULL` if it has all its
    /// lanes.
    ///
    /// # Safety
    /// As for [`Self::vectors`].
    #[inline(always)]
    unsafe fn load<V: Vector<T>, const FULL: bool>(
        &self,
        vector: usize,
        products: *const T::Wide,
    ) -> (C::State<V>, C::Gates<V>) {
        let Self { call, task, token, .. } = *self;
        let shapes = call.time.shapes;
        let (d, units) = (shapes.head_dim, shapes.units());
        let first = vector * V::LANES;
        let n = if FULL { V::LANES } else { d - first };
        let column = task.head * d + first;
        // SAFETY: every address lies in its tensor, n elements from its end at least, as the shapes
        // say (and `at` checks in debug builds).
        unsafe {
            let mut gates = C::Gates::<V>::splat(V::lit(0.0));
            for (k, out) in gates.as_mut().iter_mut().enumerate() {
                let mut gate = V::load_n(at(call.b, k * units + column, n), n);
                if k >= Self::INNER {
                    let position = (token * C::GX + k - Self::INNER) * units + column;
                    gate = gate + V::load_n(at(call.wx, position, n), n);
                }
                if k < C::GR {
                    gate = gate + <V as Storage<T::Wide>>::load(products.add(k * V::LANES));
                }
                *out = gate;
            }
            let mut state = C::State::<V>::splat(V::lit(0.0));
            for (k, s) in state.as_mut().iter_mut().enumerate() {
                *s = <V as Storage<T::Wide>>::load(self.carried::<V>(k, vector));
            }
            (state, gates)
        }
    }

    /// Where the task keeps a state of a vector of units.
    #[inline(always)]
    fn carried<V: Vector<T>>(&self, k: usize, vector: usize) -> *mut T::Wide {
        let states = C::S;
        self.task.data.state.at((self.r * states + k) * self.padded + vector * V::LANES, V::LANES)
    }

    /// Clips and stores the state after the step.
    ///
    /// # Safety
    /// As for [`Self::vectors`].
    #[inline(always)]
    unsafe fn store<V: Vector<T>, const FULL: bool>(
        &self,
        vector: usize,
        gates: C::Gates<V>,
        mut after: C::State<V>,
    ) {
        let Self { call, task, row, token, .. } = *self;
        let shapes = call.time.shapes;
        let (d, units, tokens) = (shapes.head_dim, shapes.units(), shapes.tokens());
        let first = vector * V::LANES;
        let n = if FULL { V::LANES } else { d - first };
        let column = task.head * d + first;
        // SAFETY: as in `load`; what is written belongs to these units of this row.
        unsafe {
            if let Some(v) = call.forward_clip {
                let h = &mut after.as_mut()[0];
                *h = h.clamp_max(V::lit(v)).clamp_min(V::lit(-v));
            }
            if let Some(saved) = call.gates {
                let layout = GateLayout::of::<C>(shapes);
                for (k, gate) in gates.as_ref().iter().enumerate() {
                    match (call.wide, C::WIDE_GATES.iter().position(|&wide| wide == k)) {
                        (Some(wide), Some(i)) => {
                            let position = ((C::WIDE.len() + i) * tokens + token) * units + column;
                            Storage::<T::Wide>::store_n(*gate, wide.at(position, n), n);
                        }
                        _ => Storage::<T>::store_state_n(
                            *gate,
                            saved.at(layout.place(k, token) + column, n),
                            n,
                        ),
                    }
                }
            }
            for (k, &s) in after.as_ref().iter().enumerate() {
                if let Some(states) = call.states {
                    let position = (k * tokens + token) * units + column;
                    Storage::<T>::store_state_n(s, states.at(position, n), n);
                }
                if let Some(last) = call.last
                    && self.ends
                {
                    let position = (k * shapes.batch + row.b) * units + column;
                    Storage::<T::Wide>::store_n(s, last.at(position, n), n);
                }
                let kept = if self.reset_next { V::lit(0.0) } else { s };
                Storage::<T::Wide>::store(kept, self.carried::<V>(k, vector));
            }
            if let Some(wide) = call.wide {
                for (i, &k) in C::WIDE.iter().enumerate() {
                    let position = (i * tokens + token) * units + column;
                    Storage::<T::Wide>::store_n(after.as_ref()[k], wide.at(position, n), n);
                }
            }
            let h = after.as_ref()[0];
            if let Some(out) = call.h {
                Storage::<T>::store_state_n(h, out.at(token * units + column, n), n);
            }
            let kept = if self.reset_next { V::lit(0.0) } else { Storage::<T>::rounded(h) };
            Storage::<T::Wide>::store_n(kept, task.data.h.at(self.to + self.r * d + first, n), n);
        }
    }
}
