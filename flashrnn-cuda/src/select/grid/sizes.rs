//! The sizes of a grid kernel's layout. block.cuh and words.cuh compute the same.

use flashrnn_core::Shapes;

use super::{Grid, Pass, WARPS, WINDOW, WORD_BYTES, WORD_VALUES};
use crate::select::Gpu;

/// Registers of a thread that remain after addresses and the like, forward and backward. The
/// compiler needs [`MORE_REGISTERS`] more in the backward pass with two tiles of rows, and for GPUs
/// before compute capability 9.0.
const REGISTERS: [usize; 2] = [252 - 48, 252 - 64];
const MORE_REGISTERS: usize = 8;

impl Grid {
    /// Returns the number of blocks of a launch.
    pub fn grid(&self, shapes: &Shapes) -> usize {
        self.blocks * self.groups * shapes.heads
    }

    /// Returns the bytes of the buffers that a launch exchanges words in, and of the flag of its
    /// watchdogs behind them. They begin as zeros.
    pub fn exchange_bytes(&self, shapes: &Shapes, pass: Pass) -> usize {
        let buffer = self.words(shapes, pass).next_multiple_of(4) * self.rows * WORD_BYTES;
        self.groups * shapes.heads * self.cluster * 2 * buffer + WORD_BYTES
    }

    /// Returns the shared memory of a block in bytes. This is at least the size of the struct
    /// `Shared` of the pass's kernel, which checks it.
    pub fn shared(&self, shapes: &Shapes, pass: Pass) -> usize {
        let tiles = self.tiles(shapes, pass);
        let in_shared =
            self.steps(shapes, pass) - self.register_steps.min(self.steps(shapes, pass));
        let weights = WARPS * in_shared.max(1) * tiles * if in_shared > 0 { 512 } else { 16 };
        let sums = self.sum_buffers * WARPS * self.rows * (tiles * 16 + 4) * size_of::<f32>();
        let row_words = self.row_words(shapes, pass);
        let stage = WARPS * self.warp_rows() * row_words * WORD_VALUES * 2;
        let received = match self.cluster {
            1 => 2 * size_of::<f32>() * 4,
            cluster => 2 * size_of::<f32>() * cluster * self.rows * self.units,
        };
        let parts = 16 + received.next_multiple_of(16);
        let rows = (self.rows + 2).next_multiple_of(4) * 4;
        weights + sums + parts + stage.next_multiple_of(16) + rows + 16
    }

    /// Returns the number of registers of a thread that are left for weights.
    pub(super) fn weight_registers(&self, shapes: &Shapes, gpu: Gpu, pass: Pass) -> usize {
        let Shapes { gates, external, states, .. } = *shapes;
        let columns = self.column_tiles();
        let cells = self.cells();
        let cell = match pass {
            Pass::Forward => external + 2 * states + gates + 2,
            // What is loaded, what `linearize` computes, and the gradients.
            Pass::Backward => gates + 2 * states + (gates + 2 * states) + 2 * states + 4,
        };
        let tiles = self.tiles(shapes, pass) * columns;
        let chains = if tiles >= 4 {
            1
        } else if tiles == 1 {
            3
        } else {
            2
        };
        let words = (WINDOW / columns).min(self.loads(shapes, pass)) * columns;
        let bias = if pass == Pass::Forward { gates } else { 0 };
        // Addresses of further cells and rows.
        let cells = cells * cell + 12 * (cells - 1) + 8 * (columns - 1);
        let more = pass == Pass::Backward && (columns > 1 || gpu.clusters_of(2) == 0);
        let others = cells + bias + if more { MORE_REGISTERS } else { 0 };
        REGISTERS[pass as usize].saturating_sub(others + 4 * (tiles * chains + words))
    }

    /// Returns the number of words, per tile of 8 rows, that a lane receives in a step.
    pub(super) fn loads(&self, shapes: &Shapes, pass: Pass) -> usize {
        self.chunks(shapes, pass).div_ceil((8 / self.rows).max(1))
    }

    /// Returns the number of chunks, four words of a row each, that a warp receives.
    pub(super) fn chunks(&self, shapes: &Shapes, pass: Pass) -> usize {
        self.words(shapes, pass).div_ceil(4).div_ceil(WARPS)
    }

    pub(super) fn column_tiles(&self) -> usize {
        self.rows.div_ceil(8)
    }

    /// Returns how many rows the lanes of a warp cover outside the product.
    pub(super) fn warp_rows(&self) -> usize {
        (32 / self.units).min(self.rows)
    }

    /// Returns the number of cells of a thread.
    pub(super) fn cells(&self) -> usize {
        self.rows.div_ceil(self.warp_rows() * WARPS)
    }

    /// Returns the number of words of a row that a block sends.
    pub(super) fn row_words(&self, shapes: &Shapes, pass: Pass) -> usize {
        let values = if pass == Pass::Forward { 1 } else { shapes.recurrent };
        (values * self.units).div_ceil(WORD_VALUES)
    }

    /// Returns the number of blocks that a block receives words from.
    pub(super) fn senders(&self) -> usize {
        self.blocks / self.cluster
    }

    /// Returns the number of words of a row that a block receives.
    pub(super) fn words(&self, shapes: &Shapes, pass: Pass) -> usize {
        self.senders() * self.row_words(shapes, pass)
    }

    /// Returns the number of tiles of 16 outputs of a block's product.
    pub(super) fn tiles(&self, shapes: &Shapes, pass: Pass) -> usize {
        let outputs = match pass {
            Pass::Forward => shapes.recurrent * self.units,
            Pass::Backward => self.cluster * self.units,
        };
        outputs.div_ceil(16)
    }

    /// Returns the number of steps of 16 along a warp's part of k.
    pub(super) fn steps(&self, shapes: &Shapes, pass: Pass) -> usize {
        (3 * self.chunks(shapes, pass)).div_ceil(2)
    }
}
