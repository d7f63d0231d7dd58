//! Runs the forward pass.

use flashrnn_core::{Element, Forward, SavedMut};

use super::context::Context;
use crate::cell_kernel::CellKernel;
use crate::cpu::Cpu;
use crate::kernel::{Block, ForwardCall, start_rows};
use crate::memory::{SharedSlice, Span, WorkspaceLayout, WorkspaceView};
use crate::schedule::{Pass, Row, Task, TimeLoop, sort_rows};
use crate::simd::Vector;

/// The time loop of the forward pass, and the layout of its workspace.
pub(super) struct ForwardEngine {
    bytes: usize,
    rows: Span,
    time_loop: TimeLoop,
}

impl ForwardEngine {
    pub fn new<T: Element, V: Vector<T>>(context: &Context<T>) -> Self {
        let mut layout = WorkspaceLayout::default();
        let rows = layout.add::<Row>(context.shapes.batch);
        let panels = &context.forward;
        let time_loop = TimeLoop::new::<T::Wide>(
            &mut layout,
            context.loop_sizes::<V>(panels),
            context.division::<V>(panels),
            context.workers.threads(),
        );
        Self { bytes: layout.bytes(), rows, time_loop }
    }

    /// Returns the bytes of the workspace.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Runs all time steps.
    ///
    /// # Safety
    /// `memory` has [`Self::bytes`] bytes, and nothing else uses it.
    pub unsafe fn run<T: Element>(
        &self,
        context: &Context<T>,
        call: Forward<'_, Cpu, T>,
        memory: WorkspaceView<'_>,
    ) {
        // SAFETY: nothing else takes this span.
        let rows = unsafe { memory.fill(self.rows, |b| context.row(call.lengths, b)) };
        sort_rows(rows);
        let (gates, wide) = match call.saved {
            Some(SavedMut { gates, wide }) => (Some(gates), Some(wide)),
            None => (None, None),
        };
        let call = ForwardCall {
            time: context.time(call.resets),
            forward_clip: context.options.forward_clip,
            panels: context.forward,
            packed: call.weights.packed().forward(),
            b: call.weights.packed().b(),
            wx: call.wx,
            s0: call.s0,
            h: call.h.map(SharedSlice::new),
            states: call.states.map(SharedSlice::new),
            last: call.last.map(SharedSlice::new),
            gates: gates.filter(|gates| !gates.is_empty()).map(SharedSlice::new),
            wide: wide.filter(|wide| !wide.is_empty()).map(SharedSlice::new),
        };
        let pass = ForwardPass { cell: &*context.cell, call };
        // SAFETY: guaranteed by the caller.
        unsafe { self.time_loop.run(memory, &context.workers, rows, &pass) };
    }
}

/// A call and the cell's kernel that computes it.
pub(super) struct ForwardPass<'a, T: Element> {
    /// Compiled for an instruction set that the machine supports.
    pub cell: &'a dyn CellKernel<T>,
    pub call: ForwardCall<'a, T>,
}

impl<T: Element> Pass<T::Wide> for ForwardPass<'_, T> {
    unsafe fn begin(&self, task: &Task<'_, T::Wide>) {
        // SAFETY: guaranteed by the caller.
        unsafe { start_rows(&self.call, task) }
    }

    fn steps(&self, task: &Task<'_, T::Wide>) -> usize {
        task.rows.first().map_or(0, |row| row.length)
    }

    unsafe fn block(
        &self,
        task: &Task<'_, T::Wide>,
        step: usize,
        block: usize,
        scratch: &mut [T::Wide],
    ) {
        // SAFETY: guaranteed by the caller; the machine supports the kernel's instruction set.
        unsafe { self.cell.forward(Block { call: &self.call, task, step, block, scratch }) }
    }
}
