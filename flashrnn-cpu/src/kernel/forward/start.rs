//! Prepares a task for its first step.

use flashrnn_core::Element;

use super::call::ForwardCall;
use crate::kernel::layout::UnitOffsets;
use crate::schedule::Task;

/// Fills a task's state and h from `s0`, and writes the outputs that no step writes: zeros beyond
/// each row's length, and the last state of rows without steps.
///
/// # Safety
/// No other thread uses the task's memory, or the outputs of its rows and head.
pub(crate) unsafe fn start_rows<T: Element>(call: &ForwardCall<'_, T>, task: &Task<'_, T::Wide>) {
    let shapes = call.time.shapes;
    let d = shapes.head_dim;
    let padded = call.panels.padded_units();
    let at = UnitOffsets::new(shapes, task.head * d);
    for (r, &row) in task.rows.iter().enumerate() {
        let reset = row.length > 0 && call.time.reset(row, 0);
        for k in 0..shapes.states {
            let initial = call.s0.map(|s0| &s0[at.row(k, row.b)..][..d]);
            // SAFETY: the caller guarantees that no other thread uses the task's memory.
            let state = unsafe { task.state.slice((r * shapes.states + k) * padded, padded) };
            let (state, padding) = state.split_at_mut(d);
            padding.fill(T::Wide::default());
            match initial {
                Some(initial) if !reset => state.copy_from_slice(initial),
                _ => state.fill(T::Wide::default()),
            }
            if k == 0 {
                // SAFETY: as above.
                let h = unsafe { task.inputs.slice(task.read_half(0, d) + r * d, d) };
                for (h, &s) in h.iter_mut().zip(&*state) {
                    *h = T::saturating_from_wide(s).to_wide();
                }
            }
            if let Some(last) = call.last
                && row.length == 0
            {
                // SAFETY: the caller guarantees that no other thread uses these outputs.
                let last = unsafe { last.slice(at.row(k, row.b), d) };
                match initial {
                    Some(initial) => last.copy_from_slice(initial),
                    None => last.fill(T::Wide::default()),
                }
            }
            for out in [call.h.filter(|_| k == 0), call.states].into_iter().flatten() {
                for t in row.length..shapes.time {
                    let token = shapes.token(row.b, t);
                    // SAFETY: as above.
                    unsafe { out.slice(at.token(k, token), d) }.fill(T::default());
                }
            }
        }
    }
}
