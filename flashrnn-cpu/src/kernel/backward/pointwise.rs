//! The pointwise stage of one row: propagates the gradient of the state back through the cell.

use flashrnn_core::{Array, Cell, CellSizes, Element};

use super::call::BackwardCall;
use crate::kernel::layout::{GateLayout, UnitOffsets};
use crate::memory::at;
use crate::schedule::{Previous, Row, Task};
use crate::simd::{Storage, Vector};

/// One row in one step.
pub(super) struct RowStep<'a, C: Cell, T: Element> {
    pub cell: &'a C,
    pub call: &'a BackwardCall<'a, T>,
    pub task: &'a Task<'a, T::Wide>,
    /// The row's index in the task.
    pub r: usize,
    pub row: Row,
    /// Whether the row has no step after this one.
    pub ends: bool,
    /// Whether the state is reset before the row's step after this one.
    pub reset_after: bool,
    /// The step's token and the state that it starts from; `None` in the iteration that produces
    /// `d_s0`.
    pub place: Option<(usize, Previous)>,
    /// The offset of the half of the task's inputs that this step writes.
    pub written: usize,
    /// Units per head, padded to whole vectors.
    pub padded: usize,
}

/// A vector of units. Only its first `n` lanes hold units.
#[derive(Clone, Copy)]
struct Units {
    vector: usize,
    n: usize,
    at: UnitOffsets,
}

impl<C: Cell, T: Element> RowStep<'_, C, T> {
    /// Computes one vector of units. `FULL` says that all lanes hold units.
    ///
    /// # Safety
    /// No other thread uses these units of the row; `product [LANES]` is valid.
    #[inline(always)]
    pub unsafe fn compute<V: Vector<T>, const FULL: bool>(
        &self,
        vector: usize,
        product: *const T::Wide,
    ) {
        let Self { call, task, row, .. } = *self;
        let d = call.time.shapes.head_dim;
        let first = vector * V::LANES;
        let n = if FULL { V::LANES } else { d - first };
        let units =
            Units { vector, n, at: UnitOffsets::new(call.time.shapes, task.head * d + first) };
        // SAFETY: the tensors' shapes keep the n elements from each offset within bounds; `at`
        // checks this in debug builds. Only these units of this row are written.
        unsafe {
            let mut d_after = self.state_gradient::<V>(units, product);
            let Some((token, previous)) = self.place else {
                if let Some(d_s0) = call.d_s0 {
                    for (k, &d_state) in d_after.as_ref().iter().enumerate() {
                        let out = d_s0.at(units.at.row(k, row.b), n);
                        Storage::<T::Wide>::store_n(d_state, out, n);
                    }
                }
                return;
            };
            if let Some(d_states) = call.d_states {
                let given = d_after.as_mut().iter_mut().enumerate().take(call.d_states_len);
                for (k, d_after) in given {
                    let d_state = at(d_states, units.at.token(k, token), n);
                    *d_after = *d_after + <V as Storage<T>>::load_n(d_state, n);
                }
            }
            let state = self.state::<V>(units, previous);
            let gates = self.gates::<V>(units, token);
            if let Some(v) = call.forward_clip {
                let h = self.cell.forward(state, gates).as_ref()[0];
                let d_h = &mut d_after.as_mut()[0];
                *d_h = V::select(h.abs().gt(V::lit(v)), V::lit(0.0), *d_h);
            }
            let (d_state, d_gates) = self.cell.backward(state, gates, d_after);
            for (k, &d_state) in d_state.as_ref().iter().enumerate() {
                Storage::<T::Wide>::store(d_state, self.carried::<V>(k, vector));
            }
            let layout = GateLayout::of_cell::<C>(call.time.shapes);
            for (k, &d_gate) in d_gates.as_ref().iter().enumerate() {
                Storage::<T>::store_n(d_gate, self.gate_gradient(layout, k, token, units), n);
                if k < C::GR {
                    let offset = self.written + self.r * call.panels.depth + k * d + first;
                    Storage::<T::Wide>::store_n(d_gate, task.inputs.at(offset, n), n);
                }
            }
        }
    }

    /// Returns the gradient of the state after the step, without `d_states`.
    ///
    /// # Safety
    /// Same as for [`Self::compute`].
    #[inline(always)]
    unsafe fn state_gradient<V: Vector<T>>(
        &self,
        units: Units,
        product: *const T::Wide,
    ) -> C::State<V> {
        let Self { call, row, .. } = *self;
        let zero = V::lit(0.0);
        let mut d_after = C::State::<V>::splat(zero);
        for (k, d_state) in d_after.as_mut().iter_mut().enumerate() {
            // SAFETY: as in `compute`.
            *d_state = unsafe {
                if self.ends {
                    match call.d_last {
                        Some(d_last) if !C::CONSTANT.contains(&k) => {
                            let d_last = at(d_last, units.at.row(k, row.b), units.n);
                            <V as Storage<T::Wide>>::load_n(d_last, units.n)
                        }
                        _ => zero,
                    }
                } else if self.reset_after {
                    zero
                } else {
                    let mut d_state =
                        <V as Storage<T::Wide>>::load(self.carried::<V>(k, units.vector));
                    if k == 0 && !call.cut_recurrent_grad {
                        let mut d_h = <V as Storage<T::Wide>>::load(product);
                        if let Some(v) = call.recurrent_grad_clip {
                            d_h = d_h.clamp_max(V::lit(v)).clamp_min(V::lit(-v));
                        }
                        d_state = d_state + d_h;
                    }
                    d_state
                }
            };
        }
        d_after
    }

    /// Returns the state that the step starts from.
    ///
    /// # Safety
    /// Same as for [`Self::compute`].
    #[inline(always)]
    unsafe fn state<V: Vector<T>>(&self, units: Units, previous: Previous) -> C::State<V> {
        let Self { call, row, .. } = *self;
        let Units { n, at: offset, .. } = units;
        let zero = V::lit(0.0);
        let mut state = C::State::<V>::splat(zero);
        for (k, s) in state.as_mut().iter_mut().enumerate() {
            // SAFETY: as in `compute`.
            *s = unsafe {
                match (previous, call.s0) {
                    (Previous::Zero, _) | (Previous::Initial, None) => zero,
                    (Previous::Initial, Some(s0)) => {
                        <V as Storage<T::Wide>>::load_n(at(s0, offset.row(k, row.b), n), n)
                    }
                    (Previous::Token(token), _) => {
                        match call.wide.zip(C::WIDE.iter().position(|&wide| wide == k)) {
                            Some((wide, i)) => {
                                let wide = at(wide, offset.token(i, token), n);
                                <V as Storage<T::Wide>>::load_n(wide, n)
                            }
                            None => {
                                let state = at(call.states, offset.token(k, token), n);
                                <V as Storage<T>>::load_n(state, n)
                            }
                        }
                    }
                }
            };
        }
        state
    }

    /// Returns the gates of the step, saved or recomputed.
    ///
    /// # Safety
    /// Same as for [`Self::compute`].
    #[inline(always)]
    unsafe fn gates<V: Vector<T>>(&self, units: Units, token: usize) -> C::Gates<V> {
        let Self { call, .. } = *self;
        let Units { n, at: offset, .. } = units;
        let layout = GateLayout::of_cell::<C>(call.time.shapes);
        let mut gates = C::Gates::<V>::splat(V::lit(0.0));
        for (k, gate) in gates.as_mut().iter_mut().enumerate() {
            let wide = C::WIDE_GATES.iter().position(|&wide| wide == k);
            // SAFETY: as in `compute`.
            *gate = unsafe {
                match (call.wide_gates.zip(wide), call.gates) {
                    (Some((gates, i)), _) => {
                        <V as Storage<T::Wide>>::load_n(at(gates, offset.token(i, token), n), n)
                    }
                    (None, Some(gates)) => {
                        let saved = at(gates, layout.saved(k, token) + offset.column(), n);
                        <V as Storage<T>>::load_n(saved, n)
                    }
                    (None, None) => {
                        let recomputed = self.gate_gradient(layout, k, token, units);
                        let rounded = <V as Storage<T>>::load_n(recomputed, n);
                        match call.remainders.zip(wide) {
                            Some((remainders, i)) => {
                                let remainder = at(remainders, offset.token(i, token), n);
                                rounded + <V as Storage<T>>::load_n(remainder, n)
                            }
                            None => rounded,
                        }
                    }
                }
            };
        }
        gates
    }

    /// Returns the address of a gate's gradient. A recomputed gate is stored there until its
    /// gradient replaces it.
    #[inline(always)]
    fn gate_gradient(&self, layout: GateLayout, gate: usize, token: usize, units: Units) -> *mut T {
        let tensors = [self.call.d_wx, self.call.d_inner];
        let (tensor, offset) = layout.locate(gate, token, tensors);
        tensor.at(offset + units.at.column(), units.n)
    }

    /// Returns the address of a vector of units in the gradient of the task's `k`th state.
    #[inline(always)]
    fn carried<V: Vector<T>>(&self, k: usize, vector: usize) -> *mut T::Wide {
        self.task.state.at((self.r * C::S + k) * self.padded + vector * V::LANES, V::LANES)
    }
}
