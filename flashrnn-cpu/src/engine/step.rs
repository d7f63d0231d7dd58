//! Runs single time steps, for streaming.

use std::sync::Mutex;

use flashrnn_core::{Element, Result, Shapes, Step};

use super::context::Context;
use super::forward::ForwardPass;
use crate::cpu::Cpu;
use crate::kernel::ForwardCall;
use crate::memory::{Aligned, SharedSlice, lock, try_filled};
use crate::schedule::{LoopSizes, Pass, Row, Task, TimeAxis};
use crate::simd::Vector;

/// Computes single steps on the calling thread.
pub(super) struct StepEngine<T: Element> {
    /// The shapes of the problem with one step.
    shapes: Shapes,
    sizes: LoopSizes,
    /// Scratch memory that no running step uses. Reusing it avoids allocations.
    kept: Mutex<Vec<StepScratch<T::Wide>>>,
}

/// The scratch memory of a step. Heads use it one after another, so it stays in the cache.
struct StepScratch<S> {
    /// The batch, with one step per row.
    rows: Vec<Row>,
    state: Aligned<S>,
    inputs: Aligned<S>,
    products: Aligned<S>,
}

impl<T: Element> StepEngine<T> {
    pub fn new<V: Vector<T>>(context: &Context<T>) -> Self {
        Self {
            shapes: Shapes { time: 1, ..context.shapes.clone() },
            sizes: context.loop_sizes::<V>(&context.forward),
            kept: Mutex::default(),
        }
    }

    fn scratch(&self) -> Result<StepScratch<T::Wide>> {
        let LoopSizes { batch, row_state, row_inputs, scratch, .. } = self.sizes;
        let mut rows = try_filled(Row { b: 0, length: 1 }, batch)?;
        rows.iter_mut().enumerate().for_each(|(b, row)| row.b = b);
        Ok(StepScratch {
            rows,
            state: Aligned::new(batch * row_state)?,
            inputs: Aligned::new(batch * row_inputs)?,
            products: Aligned::new(scratch)?,
        })
    }

    /// Advances a state by one time step.
    pub fn run(&self, context: &Context<T>, call: Step<'_, Cpu, T>) -> Result<()> {
        let kept = lock(&self.kept).pop();
        let mut scratch = kept.map_or_else(|| self.scratch(), Ok)?;
        let args = ForwardCall {
            time: TimeAxis { shapes: &self.shapes, reverse: false, resets: None },
            forward_clip: context.options.forward_clip,
            panels: context.forward,
            packed: call.weights.packed().forward(),
            b: call.weights.packed().b(),
            wx: call.wx,
            s0: None,
            h: call.h.map(SharedSlice::new),
            states: None,
            last: None,
            gates: None,
            wide: None,
        };
        let mut task = Task {
            head: 0,
            rows: &scratch.rows,
            state: SharedSlice::new(scratch.state.as_mut_slice()),
            inputs: SharedSlice::new(scratch.inputs.as_mut_slice()),
        };
        let cell = &*context.cell;
        let _mode = context.workers.subnormals.enter();
        for head in 0..self.sizes.heads {
            task.head = head;
            let pass = ForwardPass { cell, call: ForwardCall { s0: Some(&*call.state), ..args } };
            // SAFETY: no other thread uses the scratch memory or the outputs.
            unsafe { pass.begin(&task) };
            let last = Some(SharedSlice::new(&mut *call.state));
            let pass = ForwardPass { cell, call: ForwardCall { last, ..args } };
            for block in 0..self.sizes.blocks {
                // SAFETY: as above.
                unsafe { pass.block(&task, 0, block, scratch.products.as_mut_slice()) };
            }
        }
        lock(&self.kept).push(scratch);
        Ok(())
    }
}
