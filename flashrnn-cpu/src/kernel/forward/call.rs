//! The arguments of a forward pass.

use flashrnn_core::Element;

use crate::kernel::layout::{GateLayout, UnitOffsets};
use crate::kernel::panels::Panels;
use crate::memory::{CACHE_LINE, SharedSlice};
use crate::schedule::TimeAxis;
use crate::simd::prefetch;

/// The tensors and options of a forward pass, as the kernels read them.
pub(crate) struct ForwardCall<'a, T: Element> {
    pub time: TimeAxis<'a>,
    pub forward_clip: Option<f64>,
    pub panels: Panels,
    /// `[N, panels.len()]`
    pub packed: &'a [T::Wide],
    /// `[G, N, D]`
    pub b: &'a [T::Wide],
    /// `[B, T, Gx, N, D]`
    pub wx: &'a [T],
    /// `[S, B, N, D]`
    pub s0: Option<&'a [T::Wide]>,
    /// `[B, T, N, D]`
    pub h: Option<SharedSlice<'a, T>>,
    /// `[S, B, T, N, D]`
    pub states: Option<SharedSlice<'a, T>>,
    /// `[S, B, N, D]`
    pub last: Option<SharedSlice<'a, T::Wide>>,
    /// The gates to save, in the order of [`GateLayout`].
    pub gates: Option<SharedSlice<'a, T>>,
    /// `[wide states, B, T, N, D]`, followed by `[wide gates, B, T, N, D]` if gates are saved.
    pub wide: Option<SharedSlice<'a, T::Wide>>,
}

impl<T: Element> ForwardCall<'_, T> {
    /// Prefetches one cache line of units of every tensor that a step accesses, for a cell with
    /// `wide_states`.
    #[inline(always)]
    pub fn prefetch(&self, wide_states: usize, token: usize, column: usize) {
        let shapes = self.time.shapes;
        let at = UnitOffsets::new(shapes, column);
        for k in 0..shapes.external {
            prefetch(self.wx.as_ptr().wrapping_add(at.unit(token * shapes.external + k)));
        }
        let layout = GateLayout::new(shapes);
        if let Some(gates) = self.gates {
            for k in 0..shapes.gates {
                prefetch(gates.at(layout.saved(k, token) + column, 0));
            }
        }
        if let Some(states) = self.states {
            for k in 0..shapes.states {
                prefetch(states.at(at.token(k, token), 0));
            }
        }
        if let Some(h) = self.h {
            prefetch(h.at(at.token(0, token), 0));
        }
        if let Some(states) = self.wide {
            for i in 0..wide_states {
                let line = states.at(at.token(i, token), 0);
                prefetch(line);
                prefetch(line.wrapping_byte_add(CACHE_LINE));
            }
        }
    }
}
