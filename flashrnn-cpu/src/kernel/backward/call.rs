//! The arguments of a backward pass.

use flashrnn_core::Element;

use crate::kernel::layout::{GateLayout, UnitOffsets};
use crate::kernel::panels::Panels;
use crate::memory::SharedSlice;
use crate::schedule::{Previous, Task, TimeAxis};
use crate::simd::prefetch;

/// The tensors and options of a backward pass, as the kernels read them.
pub(crate) struct BackwardCall<'a, T: Element> {
    pub time: TimeAxis<'a>,
    pub forward_clip: Option<f64>,
    pub recurrent_grad_clip: Option<f64>,
    pub cut_recurrent_grad: bool,
    pub panels: Panels,
    /// Transposed, `[N, panels.len()]`.
    pub packed: &'a [T::Wide],
    /// `[S, B, T, N, D]`
    pub states: &'a [T],
    /// `[S, B, N, D]`
    pub s0: Option<&'a [T::Wide]>,
    /// The exact values of the wide states, `[wide states, B, T, N, D]`; `None` if `states` is
    /// exact.
    pub wide: Option<&'a [T::Wide]>,
    /// The exact values of saved wide gates, `[wide gates, B, T, N, D]`; `None` if `gates` is
    /// exact.
    pub wide_gates: Option<&'a [T::Wide]>,
    /// The rounding errors of recomputed wide gates, `[wide gates, B, T, N, D]`.
    pub remainders: Option<&'a [T]>,
    /// The saved gates. `None` if they were recomputed; `d_wx` and `d_inner` then hold each gate
    /// until its gradient replaces it.
    pub gates: Option<&'a [T]>,
    /// The gradients of the first `d_states_len` states, `[d_states_len, B, T, N, D]`.
    pub d_states: Option<&'a [T]>,
    pub d_states_len: usize,
    /// `[S, B, N, D]`
    pub d_last: Option<&'a [T::Wide]>,
    /// `[B, T, Gx, N, D]`
    pub d_wx: SharedSlice<'a, T>,
    /// The gradients of the gates without external input, `[B, T, G - Gx, N, D]`.
    pub d_inner: SharedSlice<'a, T>,
    /// `[S, B, N, D]`
    pub d_s0: Option<SharedSlice<'a, T::Wide>>,
}

impl<T: Element> BackwardCall<'_, T> {
    /// Prefetches one cache line of units of every tensor that a step accesses.
    #[inline(always)]
    pub fn prefetch(&self, token: usize, previous: Previous, column: usize) {
        let shapes = self.time.shapes;
        let at = UnitOffsets::new(shapes, column);
        let layout = GateLayout::new(shapes);
        for k in 0..shapes.gates {
            if let Some(gates) = self.gates {
                prefetch(gates.as_ptr().wrapping_add(layout.saved(k, token) + column));
            }
            let (gradient, offset) = layout.locate(k, token, [self.d_wx, self.d_inner]);
            prefetch(gradient.at(offset + column, 0));
        }
        if let Some(d_states) = self.d_states {
            prefetch(d_states.as_ptr().wrapping_add(at.token(0, token)));
        }
        if let Previous::Token(token) = previous {
            for k in 0..shapes.states {
                prefetch(self.states.as_ptr().wrapping_add(at.token(k, token)));
            }
        }
    }
}

/// Zeroes `d_wx` beyond the rows' lengths.
///
/// # Safety
/// No other thread uses the part of `d_wx` that belongs to the task's rows and head.
pub(crate) unsafe fn clear_padding<T: Element>(
    call: &BackwardCall<'_, T>,
    task: &Task<'_, T::Wide>,
) {
    let shapes = call.time.shapes;
    let d = shapes.head_dim;
    let at = UnitOffsets::new(shapes, task.head * d);
    for row in task.rows {
        for t in row.length..shapes.time {
            let token = shapes.token(row.b, t);
            for k in 0..shapes.external {
                let offset = at.unit(token * shapes.external + k);
                // SAFETY: guaranteed by the caller.
                unsafe { call.d_wx.slice(offset, d) }.fill(T::default());
            }
        }
    }
}
