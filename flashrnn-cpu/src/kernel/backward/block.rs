//! Computes one block of one step.

use std::ops::Range;

use flashrnn_core::{Cell, Element};

use super::call::BackwardCall;
use super::pointwise::RowStep;
use crate::kernel::block::{Block, CellTask};
use crate::kernel::product::Product;
use crate::memory::at;
use crate::schedule::{Task, running_rows};
use crate::simd::{SimdTask, Vector};

/// A block of the backward pass. Step 0 is the last step of the task's longest row; the iteration
/// after that row's first step produces `d_s0`.
pub(crate) type BackwardBlock<'a, T> = Block<'a, BackwardCall<'a, T>, <T as Element>::Wide>;

impl<C: Cell, T: Element, V: Vector<T>> SimdTask<V> for CellTask<'_, C, BackwardBlock<'_, T>> {
    #[inline(always)]
    unsafe fn run(self) {
        let CellTask { cell, block: Block { call, task, step: iteration, block, scratch } } = self;
        let (d, depth) = (call.time.shapes.head_dim, call.panels.depth);
        let padded = call.panels.vectors() * V::LANES;
        let longest = task.rows.first().map_or(0, |row| row.length);
        // The step in processing order; `None` in the iteration that produces d_s0.
        let step = (longest - iteration.min(longest)).checked_sub(1);
        let next = step.map_or(0, |step| step + 1);
        // The first `running` rows have this step; the first `continued` of them also have the next
        // one.
        let running = step.map_or(task.rows.len(), |step| running_rows(task.rows, step));
        let continued = running_rows(task.rows, next);
        let read = task.read_half(iteration, depth);
        let stride = call.panels.outputs();
        let tiles = running.div_ceil(V::ROWS);
        for tile in 0..tiles {
            let (first, end) = (tile * running / tiles, (tile + 1) * running / tiles);
            // Prefetch the pointwise stage's data while the product is computed.
            if let Some(step) = step {
                prefetch_rows(call, task, step, first..end, block);
            }
            let rows = continued.clamp(first, end) - first;
            if rows > 0 && !call.cut_recurrent_grad {
                let product = Product {
                    panels: &call.panels,
                    block,
                    packed: call.panels.head(call.packed, task.head),
                    a: task.inputs.at(read + first * depth, rows * depth),
                    rows,
                    out: scratch.as_mut_ptr(),
                };
                // SAFETY: `scratch` has room for ROWS rows; no thread writes this half of the
                // inputs during the step.
                unsafe { product.compute::<V>() };
            }
            for r in first..end {
                let row = task.rows[r];
                let row_step = RowStep {
                    cell,
                    call,
                    task,
                    r,
                    row,
                    ends: next == row.length,
                    reset_after: next < row.length && call.time.reset(row, next),
                    place: step
                        .map(|step| (call.time.token(row, step), call.time.previous(row, step))),
                    written: task.written_half(iteration, depth),
                    padded,
                };
                for (i, vector) in call.panels.block_vectors(block).enumerate() {
                    let product = at(scratch, (r - first) * stride + i * V::LANES, V::LANES);
                    // SAFETY: the block's units belong to this thread.
                    unsafe {
                        if (vector + 1) * V::LANES <= d {
                            row_step.compute::<V, true>(vector, product);
                        } else {
                            row_step.compute::<V, false>(vector, product);
                        }
                    }
                }
            }
        }
    }
}

/// Prefetches the data that a block of some rows accesses in a step.
#[inline(always)]
fn prefetch_rows<T: Element>(
    call: &BackwardCall<'_, T>,
    task: &Task<'_, T::Wide>,
    step: usize,
    rows: Range<usize>,
    block: usize,
) {
    for &row in &task.rows[rows] {
        let (token, previous) = (call.time.token(row, step), call.time.previous(row, step));
        for unit in call.panels.block_lines::<T>(block) {
            call.prefetch(token, previous, task.head * call.time.shapes.head_dim + unit);
        }
    }
}
