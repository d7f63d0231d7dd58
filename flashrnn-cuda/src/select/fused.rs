//! How the fused kernels spread a head over blocks and warps: pure functions of the problem, the
//! element type and the device.

use flashrnn_core::Shapes;

use crate::select::step::Gpu;

/// How a fused kernel is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fused {
    /// Blocks of a head: a cluster.
    pub blocks: usize,
    /// Units of a block, a multiple of 8 (backward 16, 32 or 64).
    pub units: usize,
    /// Rows of the batch in a block: 8, as many as the tensor cores take, or 4.
    pub rows: usize,
    /// Warps that compute.
    pub warps: usize,
    /// Parts of k, which different warps sum.
    pub split: usize,
    /// Backward: the tiles of 16 units that a computing warp has; forward it has 8 units.
    pub of_warp: usize,
    /// Warps that fetch and store meanwhile.
    pub helpers: usize,
    /// Steps of inputs in shared memory.
    pub stages: usize,
}

/// The registers of a thread that weights may take in a block of up to 12 warps: more with the
/// tensor cores, which need few others.
const WEIGHTS: [usize; 2] = [128, 64];

/// The fewest registers that rule out 8 carrying warps beside 8 that compute.
const FEW_WEIGHTS: usize = 32;

/// How the fused forward kernel runs, where it can: where the rows of R of 8 units, or half of
/// their k, fit the registers of a warp.
pub fn fused_forward(shapes: &Shapes, element_bytes: usize, gpu: Gpu) -> Option<Fused> {
    if shapes.recurrent == 0 {
        return None;
    }
    let most = WEIGHTS[usize::from(element_bytes == 4)];
    // A thread holds 16 of k of a pair of gates in 4 registers, or 16 of k of an f32 gate.
    let tiles = if element_bytes == 2 { shapes.recurrent.div_ceil(2) } else { shapes.recurrent };
    let weights = |split: usize| tiles * forward_steps(shapes, split) * 4;
    // A gate apart from the product takes registers of its own.
    let others = 4 * (shapes.gates - shapes.recurrent);
    let split = [1, 2].into_iter().find(|&split| weights(split) + others * (split - 1) <= most)?;
    let units = match shapes.head_dim {
        _ if split > 1 || weights(1) > 64 => 32,
        ..=64 => 64,
        _ => cluster_units(shapes, gpu)[0],
    };
    let blocks = shapes.head_dim.div_ceil(units);
    let units = shapes.head_dim.div_ceil(blocks).next_multiple_of(8);
    let blocks = shapes.head_dim.div_ceil(units);
    let fused = Fused {
        blocks,
        units,
        rows: rows(shapes, blocks, gpu),
        warps: units / 8 * split,
        split,
        of_warp: 1,
        // Where registers allow it, as many warps carry as compute.
        helpers: if element_bytes == 2 && weights(1) <= FEW_WEIGHTS { 8 } else { 4 },
        stages: 0,
    };
    fused.with_stages(gpu, |fused| fused.forward_shared(shapes, element_bytes, true))
}

/// How the fused backward kernel runs, where it can: a block holds R transposed for all of the
/// head's units and the gates of its own.
pub fn fused_backward(shapes: &Shapes, element_bytes: usize, gpu: Gpu) -> Option<Fused> {
    if shapes.recurrent == 0 {
        return None;
    }
    let choice = |units: usize| -> Option<Fused> {
        let blocks = shapes.head_dim.div_ceil(units);
        let tiles = blocks * units / 16;
        // An f32 lane uses what it reads of dg for two units of each of its tiles.
        let least = if element_bytes == 4 { tiles.min(2) } else { 1 };
        let of_warp = tiles.div_ceil(8).max(least);
        let split = 1 << (8 * of_warp / tiles).max(1).ilog2();
        let rows = rows(shapes, blocks, gpu);
        let fused = Fused { blocks, units, rows, warps: 8, split, of_warp, helpers: 4, stages: 0 };
        let fused = if fused.backward_weights(shapes, element_bytes) <= 64 {
            fused
        } else {
            // 8 warps in all may have 255 registers a thread.
            let of_warp = tiles.div_ceil(7);
            let fused = Fused { rows: 4, warps: 7, split: 1, of_warp, helpers: 1, ..fused };
            let fits = element_bytes == 2 && fused.backward_weights(shapes, element_bytes) <= 160;
            fits.then_some(fused)?
        };
        fused.with_stages(gpu, |fused| fused.backward_shared(shapes, element_bytes))
    };
    let one_block =
        [16, 32, 64].into_iter().find(|&units| shapes.head_dim <= units).and_then(choice);
    one_block.or_else(|| cluster_units(shapes, gpu).into_iter().find_map(choice))
}

/// The units of a block in a cluster, what is better first: half as many where all blocks still
/// find a multiprocessor, since an exchange takes about the same time.
fn cluster_units(shapes: &Shapes, gpu: Gpu) -> [usize; 2] {
    let blocks = shapes.head_dim.div_ceil(32) * shapes.heads * shapes.batch.div_ceil(4);
    if blocks <= gpu.multiprocessors { [32, 64] } else { [64, 32] }
}

/// The rows of the batch in a block of a fused kernel: 4 where all blocks still find a
/// multiprocessor, since what is done for each row and unit, most of the work of a step, then takes
/// half the time; and in a large cluster, whose exchange is what takes long.
fn rows(shapes: &Shapes, blocks: usize, gpu: Gpu) -> usize {
    let spread = blocks * shapes.heads * shapes.batch.div_ceil(4) <= gpu.multiprocessors;
    if spread || blocks > 8 { 4 } else { 8 }
}

impl Fused {
    /// Threads of a block.
    pub fn threads(&self) -> usize {
        32 * (self.warps + self.helpers)
    }

    /// Blocks of a launch.
    pub fn grid(&self, shapes: &Shapes) -> usize {
        self.blocks * shapes.heads * shapes.batch.div_ceil(self.rows)
    }

    /// With as many stages as the device's shared memory allows, 8 at most: more than that hides
    /// nothing more. `None` where there are no such clusters, or no room.
    fn with_stages(self, gpu: Gpu, shared: impl Fn(&Self) -> usize) -> Option<Self> {
        let stages = [8, 6, 4, 3].into_iter().map(|stages| Self { stages, ..self });
        stages
            .filter(|_| self.blocks <= gpu.cluster)
            .find(|fused| shared(fused) <= gpu.shared_memory)
    }

    /// Steps of 32 of k that a warp of the backward kernel takes.
    pub fn backward_steps(&self, shapes: &Shapes) -> usize {
        (shapes.recurrent * self.units).div_ceil(32 * self.split)
    }

    /// Registers of a thread of the backward kernel that hold weights.
    fn backward_weights(&self, shapes: &Shapes, element_bytes: usize) -> usize {
        self.of_warp * self.backward_steps(shapes) * 4 * element_bytes
    }

    /// Bytes of shared memory of the forward kernel, the struct `Shared` of
    /// kernels/fused/forward.cu.
    pub fn forward_shared(&self, shapes: &Shapes, element_bytes: usize, saves: bool) -> usize {
        let (rows, row) = (self.rows, self.units + 8);
        let k = forward_steps(shapes, self.split).next_multiple_of(2) * 16 * self.split;
        let h = 2 * rows * (k.max(self.blocks * self.units) + 8);
        let x = self.stages * shapes.external.max(1) * rows * row;
        let saved = if saves { shapes.states - 1 + shapes.gates } else { 0 };
        let saved = 2 * saved.max(1) * rows * row;
        let wide = if saves { wide_tensors(shapes, element_bytes) } else { 0 };
        let parts = if self.split > 1 {
            (self.split - 1) * rows / 4 * shapes.recurrent.max(1) * self.units * 4
        } else {
            1
        };
        let floats = 2 * wide.max(1) * rows * (self.units + 4)
            + parts.max(rows / 4 * shapes.recurrent.max(1))
            + self.stages;
        (element_bytes * (h + x + saved) + 4 * floats).next_multiple_of(8) + 16
    }

    /// Bytes of shared memory of the backward kernel, the struct `Shared` of
    /// kernels/fused/backward.cu.
    pub fn backward_shared(&self, shapes: &Shapes, element_bytes: usize) -> usize {
        let (rows, row) = (self.rows, self.units + 8);
        let dg = 2 * rows * (self.split * self.backward_steps(shapes) * 32 + 8);
        let apart = 2 * (shapes.gates - shapes.recurrent).max(1) * rows * row;
        let inputs = self.stages * (shapes.gates + 2 * shapes.states) * rows * row;
        let wide =
            self.stages * wide_tensors(shapes, element_bytes).max(1) * rows * (self.units + 4);
        let before = (element_bytes * (dg + apart + inputs) + 4 * wide).next_multiple_of(16);
        let floats = 2 * self.blocks * self.split * self.units * rows + self.stages;
        (before + (4 * floats).next_multiple_of(8) + 16).next_multiple_of(16)
    }
}

/// Steps of 16 of k that a warp of the forward kernel takes: an even number, but for the end of k.
fn forward_steps(shapes: &Shapes, split: usize) -> usize {
    let steps = shapes.head_dim.div_ceil(16);
    if split == 1 { steps } else { steps.div_ceil(2 * split) * 2 }
}

/// How many states and gates are kept in f32 beside 16-bit tensors.
fn wide_tensors(shapes: &Shapes, element_bytes: usize) -> usize {
    if element_bytes < 4 { shapes.wide.len() + shapes.wide_gates.len() } else { 0 }
}

/// What can divide the addresses of rows; 1 stands for 2 where interleaved gates may begin
/// anywhere.
pub const COPY_BYTES: [usize; 5] = [16, 8, 4, 2, 1];

/// The bytes of 16, 8, 4 and 2 that divide the address of every row of D elements, where the
/// tensors begin at multiples of 16.
pub fn copy_bytes(shapes: &Shapes, element_bytes: usize) -> usize {
    let row = shapes.head_dim * element_bytes;
    COPY_BYTES.into_iter().find(|&bytes| row.is_multiple_of(bytes)).unwrap_or(1)
}

/// Whether fused kernels save the gates of a unit side by side, `[tokens, N, D, G]` instead of a
/// tensor a gate: where rows of D elements are no multiple of 16 bytes and all gates of a unit are
/// a word of 4, 8 or 16 bytes, which then lies aligned.
pub fn interleaves(shapes: &Shapes, element_bytes: usize) -> bool {
    let all = shapes.gates * element_bytes;
    element_bytes == 2 && copy_bytes(shapes, element_bytes) < 16 && [4, 8, 16].contains(&all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashrnn_core::{Elman, Gru, Lstm, Problem, Slstm};

    const H200: Gpu = Gpu { cluster: 16, multiprocessors: 132, shared_memory: 227 << 10 };
    const RTX_4090: Gpu = Gpu { cluster: 1, multiprocessors: 128, shared_memory: 99 << 10 };

    #[test]
    fn known_problems() {
        let lstm = |batch, heads, head_dim| {
            Problem::new(batch, 1, heads, head_dim).shapes::<Lstm>().unwrap()
        };
        let layout = |fused: Option<Fused>| {
            fused.map(|f| [f.blocks, f.units, f.rows, f.warps, f.split, f.of_warp, f.helpers])
        };
        let forward = |shapes, bytes, gpu| layout(fused_forward(&shapes, bytes, gpu));
        let backward = |shapes, bytes, gpu| layout(fused_backward(&shapes, bytes, gpu));
        assert_eq!(forward(lstm(16, 12, 64), 2, H200), Some([1, 64, 4, 8, 1, 1, 8]));
        assert_eq!(forward(lstm(256, 12, 64), 2, H200), Some([1, 64, 8, 8, 1, 1, 8]));
        assert_eq!(forward(lstm(16, 6, 128), 2, H200), Some([4, 32, 4, 4, 1, 1, 4]));
        assert_eq!(forward(lstm(16, 3, 256), 2, H200), Some([8, 32, 4, 4, 1, 1, 4]));
        assert_eq!(forward(lstm(16, 2, 512), 2, H200), Some([16, 32, 4, 8, 2, 1, 4]));
        assert_eq!(forward(lstm(16, 12, 64), 4, H200), Some([1, 64, 4, 8, 1, 1, 4]));
        assert_eq!(forward(lstm(16, 1, 768), 2, H200), None);
        assert_eq!(forward(lstm(16, 6, 128), 2, RTX_4090), None);

        assert_eq!(backward(lstm(16, 12, 64), 2, H200), Some([1, 64, 4, 8, 2, 1, 4]));
        assert_eq!(backward(lstm(256, 12, 64), 2, H200), Some([1, 64, 8, 8, 2, 1, 4]));
        assert_eq!(backward(lstm(16, 6, 128), 2, H200), Some([4, 32, 4, 8, 1, 1, 4]));
        assert_eq!(backward(lstm(16, 3, 256), 2, H200), Some([8, 32, 4, 8, 1, 2, 4]));
        assert_eq!(backward(lstm(16, 2, 512), 2, H200), Some([16, 32, 4, 7, 1, 5, 1]));
        assert_eq!(backward(lstm(16, 12, 64), 4, H200), Some([1, 64, 4, 8, 4, 2, 4]));
        assert_eq!(backward(lstm(16, 1, 768), 2, H200), None);

        let fused = fused_forward(&lstm(16, 12, 64), 2, H200).unwrap();
        assert_eq!((fused.grid(&lstm(16, 12, 64)), fused.threads(), fused.stages), (48, 512, 8));
    }

    #[test]
    fn copies_are_as_wide_as_rows_allow() {
        let copy_bytes = |head_dim, bytes| {
            copy_bytes(&Problem::new(1, 1, 1, head_dim).shapes::<Lstm>().unwrap(), bytes)
        };
        for (head_dim, bytes, want) in [
            (64, 2, 16),
            (72, 2, 16),
            (100, 2, 8),
            (50, 2, 4),
            (257, 2, 2),
            (1, 2, 2),
            (64, 4, 16),
            (50, 4, 8),
            (33, 4, 4),
        ] {
            assert_eq!(copy_bytes(head_dim, bytes), want, "D {head_dim} of {bytes} bytes");
        }
        let lstm = |head_dim| Problem::new(1, 1, 1, head_dim).shapes::<Lstm>().unwrap();
        let interleaved =
            [(51, 2), (100, 2), (104, 2), (51, 4)].map(|(d, bytes)| interleaves(&lstm(d), bytes));
        assert_eq!(interleaved, [true, true, false, false]);
        assert!(!interleaves(&Problem::new(1, 1, 1, 51).shapes::<Elman>().unwrap(), 2));
    }

    #[test]
    fn layouts_cover_the_head_and_fit_the_device() {
        for head_dim in 1..=1100 {
            for (gpu, bytes) in [(H200, 2), (H200, 4), (RTX_4090, 2), (RTX_4090, 4)] {
                let shapes = [
                    Problem::new(16, 1, 3, head_dim).shapes::<Slstm>().unwrap(),
                    Problem::new(16, 1, 3, head_dim).shapes::<Gru>().unwrap(),
                    Problem::new(16, 1, 3, head_dim).shapes::<Elman>().unwrap(),
                ];
                for shapes in shapes {
                    if let Some(fused) = fused_forward(&shapes, bytes, gpu) {
                        assert!(
                            fused.blocks * fused.units >= head_dim && fused.blocks <= gpu.cluster,
                            "{fused:?}"
                        );
                        assert!(
                            (fused.blocks - 1) * fused.units < head_dim,
                            "{fused:?}: a block without units"
                        );
                        assert!(
                            fused.units.is_multiple_of(8) && fused.threads() <= 512,
                            "{fused:?}"
                        );
                        assert!(
                            fused.forward_shared(&shapes, bytes, true) <= gpu.shared_memory,
                            "{fused:?}"
                        );
                        let k = forward_steps(&shapes, fused.split) * 16 * fused.split;
                        assert!(k >= head_dim, "{fused:?}: {k} of k");
                    }
                    if let Some(fused) = fused_backward(&shapes, bytes, gpu) {
                        let tiles = fused.blocks * fused.units / 16;
                        assert!(
                            fused.blocks * fused.units >= head_dim && fused.blocks <= gpu.cluster,
                            "{fused:?}"
                        );
                        assert!(
                            [16, 32, 64].contains(&fused.units)
                                && 32 * fused.warps % fused.rows == 0,
                            "{fused:?}"
                        );
                        assert!(fused.warps / fused.split * fused.of_warp >= tiles, "{fused:?}");
                        assert!(
                            fused.split * fused.backward_steps(&shapes) * 32
                                >= shapes.recurrent * fused.units
                        );
                        assert!(
                            fused.backward_shared(&shapes, bytes) <= gpu.shared_memory,
                            "{fused:?}"
                        );
                    }
                }
            }
        }
    }
}
