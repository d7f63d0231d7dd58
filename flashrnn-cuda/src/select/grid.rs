//! Grid kernels: how groups of blocks, all running at the same time, divide a head whose R does not
//! fit a cluster.

use flashrnn_core::Shapes;

use crate::select::Gpu;

/// The layout of a grid kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grid {
    /// Blocks per group. A group owns one head.
    pub blocks: usize,
    /// Units per block, even and at most 32.
    pub units: usize,
    /// Batch rows that a group computes at a time.
    pub rows: usize,
    /// Steps of 16 along k whose weights are in a warp's registers; the others are in shared
    /// memory.
    pub register_steps: usize,
    /// Buffers for the sums of the warps: 2, or 1 where shared memory is short, at the cost of a
    /// barrier per step.
    pub sum_buffers: usize,
    /// Groups per head. Each takes the next rows when it has computed its own.
    pub groups: usize,
}

/// The pass of a grid kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// The blocks exchange h.
    Forward,
    /// The blocks exchange dg of the recurrent gates.
    Backward,
}

/// Warps per block.
const WARPS: usize = 8;

/// Threads per block.
pub const THREADS: usize = 32 * WARPS;

/// Values per word of an exchange.
const WORD_VALUES: usize = 6;

/// Bytes of a word.
const WORD_BYTES: usize = 16;

/// Maximum registers per thread for weights and sums of the product.
const MAX_REGISTERS: usize = 160;

/// Numbers of rows that a group may compute at a time. Up to 8 are the columns of one tile of the
/// tensor cores.
const ROWS: [usize; 5] = [1, 2, 4, 8, 16];

/// Calls with fewer steps take the per-step kernels, because loading R and starting all blocks
/// costs more than those steps.
const MIN_STEPS: usize = 12;

/// Returns the layout of the grid kernel of a pass, or `None` if the heads do not fit the GPU or a
/// call is too short.
pub fn grid(shapes: &Shapes, element_bytes: usize, gpu: Gpu, pass: Pass) -> Option<Grid> {
    let too_short = shapes.time < MIN_STEPS && gpu.cluster > 0;
    if shapes.recurrent == 0 || element_bytes != 2 || too_short {
        return None;
    }
    let least_rows = shapes.batch.next_power_of_two();
    let candidates = ROWS.into_iter().filter(|&rows| rows <= least_rows).flat_map(|rows| {
        let sets = shapes.batch.div_ceil(rows);
        let groups = [1, 2, 4, 8, 16].into_iter().filter(move |&groups| groups <= sets);
        groups.filter_map(move |groups| layout(shapes, gpu, pass, rows, groups))
    });
    let cost = |grid: &Grid| (grid.step_time(shapes, pass), grid.rows);
    candidates.min_by(|a, b| cost(a).partial_cmp(&cost(b)).unwrap_or(std::cmp::Ordering::Equal))
}

/// Returns the layout with the fewest units per block, if that fits.
fn layout(shapes: &Shapes, gpu: Gpu, pass: Pass, rows: usize, groups: usize) -> Option<Grid> {
    let most = gpu.multiprocessors / (shapes.heads * groups);
    let units = shapes.head_dim.div_ceil(most.max(1)).next_multiple_of(2).max(8);
    // With more units, a block's words have fewer gaps.
    let sizes = (units..=32).step_by(2).flat_map(|units| [(units, 2), (units, 1)]);
    let fits = sizes.map(|(units, sum_buffers)| {
        let blocks = shapes.head_dim.div_ceil(units);
        let grid = Grid { blocks, units, rows, register_steps: 0, sum_buffers, groups };
        let sums = grid.column_tiles() * grid.tiles(shapes, pass) * 4;
        let registers = MAX_REGISTERS.saturating_sub(sums) / (4 * grid.tiles(shapes, pass));
        Grid { register_steps: registers.min(grid.steps(shapes, pass)), ..grid }
    });
    fits.filter(|grid| grid.blocks <= most && grid.shared(shapes, pass) <= gpu.shared_memory)
        .min_by(|a, b| a.step_time(shapes, pass).total_cmp(&b.step_time(shapes, pass)))
}

impl Grid {
    /// Returns the number of blocks of a launch.
    pub fn grid(&self, shapes: &Shapes) -> usize {
        self.blocks * self.groups * shapes.heads
    }

    /// Returns the bytes of the buffers that a launch exchanges words in. They begin as zeros.
    pub fn exchange_bytes(&self, shapes: &Shapes, pass: Pass) -> usize {
        let buffer = self.words(shapes, pass).next_multiple_of(4) * self.rows * WORD_BYTES;
        self.groups * shapes.heads * 2 * buffer
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
        weights + sums + stage.next_multiple_of(16) + (self.rows + 2).next_multiple_of(4) * 4 + 16
    }

    /// Returns an estimate of a step's nanoseconds, times the number of times that a group goes
    /// through the sequence. Measured on an H200.
    fn step_time(&self, shapes: &Shapes, pass: Pass) -> f64 {
        let received = self.words(shapes, pass) * self.rows * WORD_BYTES;
        let exchange = 560.0 + 1.1 * self.blocks as f64 + 0.016 * received as f64;
        let (tiles, steps) = (self.tiles(shapes, pass), self.steps(shapes, pass));
        let columns = self.column_tiles();
        let product = 6.06 * (tiles * steps * columns) as f64
            + 16.2 * (tiles * (steps - self.register_steps)) as f64;
        let barrier = if self.sum_buffers == 1 { 20.0 } else { 0.0 };
        let sums = 16.0 * (tiles * columns) as f64 + barrier;
        let sets = shapes.batch.div_ceil(self.rows * self.groups);
        (exchange + product + sums) * sets as f64
    }

    fn column_tiles(&self) -> usize {
        self.rows.div_ceil(8)
    }

    /// Returns how many rows the lanes of a warp cover outside the product.
    fn warp_rows(&self) -> usize {
        (32 / self.units).min(self.rows)
    }

    /// Returns the words of a row that a block sends.
    fn row_words(&self, shapes: &Shapes, pass: Pass) -> usize {
        let values = if pass == Pass::Forward { 1 } else { shapes.recurrent };
        (values * self.units).div_ceil(WORD_VALUES)
    }

    /// Returns the words of a row that a group exchanges.
    fn words(&self, shapes: &Shapes, pass: Pass) -> usize {
        self.blocks * self.row_words(shapes, pass)
    }

    /// Returns the tiles of 16 outputs of a block's product.
    fn tiles(&self, shapes: &Shapes, pass: Pass) -> usize {
        let outputs =
            if pass == Pass::Forward { shapes.recurrent * self.units } else { self.units };
        outputs.div_ceil(16)
    }

    /// Returns the steps of 16 along k of a warp.
    fn steps(&self, shapes: &Shapes, pass: Pass) -> usize {
        let chunks = self.words(shapes, pass).div_ceil(4).div_ceil(WARPS);
        (3 * chunks).div_ceil(2)
    }
}
