//! The pointwise stage of one row: adds products, inputs and bias to obtain the gates, and advances
//! the state.

use std::ops::Range;

use flashrnn_core::{Array, Cell, CellSizes, Element, Real};

use super::call::ForwardCall;
use crate::kernel::layout::{GateLayout, UnitOffsets};
use crate::memory::at;
use crate::schedule::{Row, Task};
use crate::simd::{Pair, Storage, Vector};

/// One row in one step.
pub(super) struct RowStep<'a, C: Cell, T: Element> {
    pub cell: &'a C,
    pub call: &'a ForwardCall<'a, T>,
    pub task: &'a Task<'a, T::Wide>,
    /// The row's index in the task.
    pub r: usize,
    pub row: Row,
    pub token: usize,
    /// Whether this is the row's last step.
    pub ends: bool,
    /// Whether the state is reset before the row's next step.
    pub reset_next: bool,
    /// The offset of the half of the task's inputs that this step writes.
    pub written: usize,
    /// Units per head, padded to whole vectors.
    pub padded: usize,
}

impl<C: Cell, T: Element> RowStep<'_, C, T> {
    /// Computes a block's vectors of units, two at a time if there are enough registers.
    ///
    /// # Safety
    /// No other thread uses these units of the row; `products [vectors, Gr, LANES]` is valid.
    #[inline(always)]
    pub unsafe fn compute<V: Vector<T>>(
        &self,
        mut vectors: Range<usize>,
        mut products: *const T::Wide,
    ) {
        let gates_len = C::GR * V::LANES;
        let full = self.call.time.shapes.head_dim / V::LANES;
        while V::PAIRS && vectors.start + 2 <= vectors.end.min(full) {
            // SAFETY: guaranteed by the caller.
            unsafe { self.pair::<V>(vectors.start, products) };
            vectors.start += 2;
            products = products.wrapping_add(2 * gates_len);
        }
        for vector in vectors {
            // SAFETY: guaranteed by the caller.
            unsafe {
                if vector < full {
                    let (state, gates) = self.load::<V, true>(vector, products);
                    self.store::<V, true>(vector, gates, self.cell.forward(state, gates));
                } else {
                    let (state, gates) = self.load::<V, false>(vector, products);
                    self.store::<V, false>(vector, gates, self.cell.forward(state, gates));
                }
            }
            products = products.wrapping_add(gates_len);
        }
    }

    /// Computes vectors `a` and `a + 1`.
    ///
    /// # Safety
    /// Same as for [`Self::compute`]; both vectors are full.
    #[inline(always)]
    unsafe fn pair<V: Vector<T>>(&self, a: usize, products: *const T::Wide) {
        let b = a + 1;
        // SAFETY: guaranteed by the caller.
        unsafe {
            let (state_a, gates_a) = self.load::<V, true>(a, products);
            let (state_b, gates_b) =
                self.load::<V, true>(b, products.wrapping_add(C::GR * V::LANES));
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
    }

    /// Returns the state before the step and the gates of a vector of units. `FULL` says that all
    /// lanes hold units.
    ///
    /// # Safety
    /// Same as for [`Self::compute`].
    #[inline(always)]
    unsafe fn load<V: Vector<T>, const FULL: bool>(
        &self,
        vector: usize,
        products: *const T::Wide,
    ) -> (C::State<V>, C::Gates<V>) {
        let Self { call, task, token, .. } = *self;
        let d = call.time.shapes.head_dim;
        let first = vector * V::LANES;
        let n = if FULL { V::LANES } else { d - first };
        let units = UnitOffsets::new(call.time.shapes, task.head * d + first);
        // The first gates have no external input.
        let inner = C::G - C::GX;
        // SAFETY: the tensors' shapes keep the n elements from each offset within bounds; `at`
        // checks this in debug builds.
        unsafe {
            let mut gates = C::Gates::<V>::splat(V::lit(0.0));
            for (k, out) in gates.as_mut().iter_mut().enumerate() {
                let mut gate = V::load_n(at(call.b, units.unit(k), n), n);
                if k >= inner {
                    let offset = units.unit(token * C::GX + k - inner);
                    gate = gate + V::load_n(at(call.wx, offset, n), n);
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

    /// Returns the address of a vector of units in the task's `k`th state.
    #[inline(always)]
    fn carried<V: Vector<T>>(&self, k: usize, vector: usize) -> *mut T::Wide {
        self.task.state.at((self.r * C::S + k) * self.padded + vector * V::LANES, V::LANES)
    }

    /// Clips and stores the state after the step, and stores the gates if they are saved.
    ///
    /// # Safety
    /// Same as for [`Self::compute`].
    #[inline(always)]
    unsafe fn store<V: Vector<T>, const FULL: bool>(
        &self,
        vector: usize,
        gates: C::Gates<V>,
        mut after: C::State<V>,
    ) {
        let Self { call, task, row, token, .. } = *self;
        let d = call.time.shapes.head_dim;
        let first = vector * V::LANES;
        let n = if FULL { V::LANES } else { d - first };
        let units = UnitOffsets::new(call.time.shapes, task.head * d + first);
        // SAFETY: as in `load`; these units of the row belong to this thread.
        unsafe {
            if let Some(v) = call.forward_clip {
                let h = &mut after.as_mut()[0];
                *h = h.clamp_max(V::lit(v)).clamp_min(V::lit(-v));
            }
            self.store_gates::<V>(gates, units, n);
            for (k, &s) in after.as_ref().iter().enumerate() {
                if let Some(states) = call.states {
                    Storage::<T>::store_state_n(s, states.at(units.token(k, token), n), n);
                }
                if let Some(last) = call.last
                    && self.ends
                {
                    Storage::<T::Wide>::store_n(s, last.at(units.row(k, row.b), n), n);
                }
                let kept = if self.reset_next { V::lit(0.0) } else { s };
                Storage::<T::Wide>::store(kept, self.carried::<V>(k, vector));
            }
            if let Some(wide) = call.wide {
                for (i, &k) in C::WIDE.iter().enumerate() {
                    let out = wide.at(units.token(i, token), n);
                    Storage::<T::Wide>::store_n(after.as_ref()[k], out, n);
                }
            }
            let h = after.as_ref()[0];
            if let Some(out) = call.h {
                Storage::<T>::store_state_n(h, out.at(units.token(0, token), n), n);
            }
            let kept = if self.reset_next { V::lit(0.0) } else { Storage::<T>::rounded(h) };
            let out = task.inputs.at(self.written + self.r * d + first, n);
            Storage::<T::Wide>::store_n(kept, out, n);
        }
    }

    /// Stores the gates of `n` units for the backward pass.
    ///
    /// # Safety
    /// Same as for [`Self::compute`].
    #[inline(always)]
    unsafe fn store_gates<V: Vector<T>>(&self, gates: C::Gates<V>, units: UnitOffsets, n: usize) {
        let Self { call, token, .. } = *self;
        let Some(saved) = call.gates else { return };
        let layout = GateLayout::of_cell::<C>(call.time.shapes);
        for (k, &gate) in gates.as_ref().iter().enumerate() {
            let wide = call.wide.zip(C::WIDE_GATES.iter().position(|&wide| wide == k));
            // SAFETY: as in `load`.
            unsafe {
                match wide {
                    Some((wide, i)) => {
                        let out = wide.at(units.token(C::WIDE.len() + i, token), n);
                        Storage::<T::Wide>::store_n(gate, out, n);
                    }
                    None => {
                        let out = saved.at(layout.saved(k, token) + units.column(), n);
                        Storage::<T>::store_state_n(gate, out, n);
                    }
                }
            }
        }
    }
}
