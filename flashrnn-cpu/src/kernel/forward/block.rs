//! Computes one block of one step.

use flashrnn_core::{Cell, Element};

use super::call::ForwardCall;
use super::pointwise::RowStep;
use crate::kernel::block::{Block, CellTask};
use crate::kernel::product::Product;
use crate::memory::at;
use crate::schedule::running_rows;
use crate::simd::{SimdTask, Vector};

/// A block of the forward pass.
pub(crate) type ForwardBlock<'a, T> = Block<'a, ForwardCall<'a, T>, <T as Element>::Wide>;

impl<C: Cell, T: Element, V: Vector<T>> SimdTask<V> for CellTask<'_, C, ForwardBlock<'_, T>> {
    #[inline(always)]
    unsafe fn run(self) {
        let CellTask { cell, block: Block { call, task, step, block, scratch } } = self;
        let d = call.time.shapes.head_dim;
        let padded = call.panels.vectors() * V::LANES;
        let running = running_rows(task.rows, step);
        let tiles = running.div_ceil(V::ROWS);
        let read = task.read_half(step, d);
        let stride = call.panels.outputs();
        for tile in 0..tiles {
            let (first, end) = (tile * running / tiles, (tile + 1) * running / tiles);
            // Prefetch the pointwise stage's data while the product is computed.
            for &row in &task.rows[first..end] {
                let token = call.time.token(row, step);
                for unit in call.panels.block_lines::<T>(block) {
                    call.prefetch(C::WIDE.len(), token, task.head * d + unit);
                }
            }
            let product = Product {
                panels: &call.panels,
                block,
                packed: call.panels.head(call.packed, task.head),
                a: task.inputs.at(read + first * d, (end - first) * d),
                rows: end - first,
                out: scratch.as_mut_ptr(),
            };
            // SAFETY: `scratch` has room for ROWS rows; no thread writes this half of the inputs
            // during the step.
            unsafe { product.compute::<V>() };
            for r in first..end {
                let row = task.rows[r];
                let row_step = RowStep {
                    cell,
                    call,
                    task,
                    r,
                    row,
                    token: call.time.token(row, step),
                    ends: step + 1 == row.length,
                    reset_next: step + 1 < row.length && call.time.reset(row, step + 1),
                    written: task.written_half(step, d),
                    padded,
                };
                let vectors = call.panels.block_vectors(block);
                let start = (r - first) * stride;
                // SAFETY: the block's units belong to this thread; the row's products start at
                // `start` in `scratch`.
                unsafe { row_step.compute::<V>(vectors, at(scratch, start, stride)) };
            }
        }
    }
}
