//! Data that all calls of an engine share.

use flashrnn_core::{Element, Options, Shapes};

use crate::cell_kernel::CellKernel;
use crate::kernel::Panels;
use crate::schedule::{Division, LoopSizes, Row, TimeAxis, Work};
use crate::simd::Vector;
use crate::threads::Workers;

/// A plan's cell, sizes, options and threads, and the order in which each pass reads R.
pub(super) struct Context<T: Element> {
    pub cell: Box<dyn CellKernel<T>>,
    pub options: Options,
    pub shapes: Shapes,
    pub workers: Workers,
    /// R as the forward pass reads it.
    pub forward: Panels,
    /// R as the backward pass reads it.
    pub backward: Panels,
}

impl<T: Element> Context<T> {
    /// Returns the time axis of a call.
    pub fn time<'a>(&'a self, resets: Option<&'a [u8]>) -> TimeAxis<'a> {
        TimeAxis { shapes: &self.shapes, reverse: self.options.reverse, resets }
    }

    /// Returns row `b` of the batch.
    pub fn row(&self, lengths: Option<&[i32]>, b: usize) -> Row {
        Row { b, length: lengths.map_or(self.shapes.time, |lengths| lengths[b] as usize) }
    }

    /// Returns the division of a pass that reads R as `panels`.
    pub fn division<V: Vector<T>>(&self, panels: &Panels) -> Division {
        let &Shapes { batch, heads, head_dim, recurrent, .. } = &self.shapes;
        let matrix = recurrent * head_dim * head_dim;
        Division::new(Work {
            threads: self.workers.threads(),
            heads,
            batch,
            blocks: panels.blocks(),
            row_step: matrix / V::LANES,
            matrix: matrix * size_of::<T::Wide>(),
        })
    }

    /// Returns the sizes of the time loop of a pass that reads R as `panels`.
    pub fn loop_sizes<V: Vector<T>>(&self, panels: &Panels) -> LoopSizes {
        LoopSizes {
            heads: self.shapes.heads,
            batch: self.shapes.batch,
            blocks: panels.blocks(),
            row_state: self.shapes.states * panels.padded_units(),
            row_inputs: 2 * panels.depth,
            scratch: V::ROWS * panels.outputs(),
        }
    }
}
