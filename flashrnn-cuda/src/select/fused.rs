//! Fused kernels: how blocks and warps divide a head.

use flashrnn_core::Shapes;

use crate::select::Gpu;

/// The layout of a fused kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fused {
    /// Blocks per head. They form a cluster.
    pub blocks: usize,
    /// Units per block: a multiple of 8 in the forward kernel; 16, 32 or 64 in the backward kernel.
    pub units: usize,
    /// Batch rows per block: 8, which fill a tile of the tensor cores, or 4.
    pub rows: usize,
    /// Warps that run the product and the cell.
    pub compute_warps: usize,
    /// Split-K: the number of parts of k, each summed by different warps.
    pub split_k: usize,
    /// Backward: tiles of 16 units per compute warp. A forward compute warp has 8 units.
    pub tiles_per_warp: usize,
    /// Warps that load inputs and store outputs while the others compute.
    pub io_warps: usize,
    /// Number of time steps whose inputs are in shared memory.
    pub stages: usize,
}

/// Maximum registers per thread for weights, in a block of up to 12 warps: for 16-bit tensors, and
/// for f32, which needs more registers for other values because it has no tensor cores.
const MAX_WEIGHTS: [usize; 2] = [128, 64];

/// Maximum registers per thread for weights if a block has 8 IO warps and up to 8 compute warps.
const MAX_WEIGHTS_IO: usize = 32;

/// Maximum number of states, and also of gates, of a cell in a fused kernel. `RowShifts`
/// (alignment.cuh) has one bit for each.
const MAX_TENSORS: usize = 16;

/// Returns whether a cell has too many states or gates for the fused kernels.
pub(crate) fn too_many_tensors(shapes: &Shapes) -> bool {
    shapes.states.max(shapes.gates) > MAX_TENSORS
}

/// Returns the layout of the fused forward kernel, or `None` if the head does not fit. For each
/// group of 8 units, the rows of R, or half of each row's k, must fit the registers of a warp.
pub fn fused_forward(shapes: &Shapes, element_bytes: usize, gpu: Gpu) -> Option<Fused> {
    if shapes.recurrent == 0 || too_many_tensors(shapes) {
        return None;
    }
    let max_weights = MAX_WEIGHTS[usize::from(element_bytes == 4)];
    // 4 registers of a thread hold 16 elements along k, of two 16-bit gates or of one f32 gate.
    let tiles = if element_bytes == 2 { shapes.recurrent.div_ceil(2) } else { shapes.recurrent };
    let weights = |split: usize| tiles * forward_steps(shapes, split) * 4;
    // A gate without recurrent input needs registers of its own.
    let others = 4 * (shapes.gates - shapes.recurrent);
    let split =
        [1, 2].into_iter().find(|&split| weights(split) + others * (split - 1) <= max_weights)?;
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
        compute_warps: units / 8 * split,
        split_k: split,
        tiles_per_warp: 1,
        io_warps: if element_bytes == 2 && weights(1) <= MAX_WEIGHTS_IO { 8 } else { 4 },
        stages: 0,
    };
    fused.with_stages(gpu, |fused| fused.forward_shared(shapes, element_bytes, true))
}

/// Returns the layout of the fused backward kernel, or `None` if the head does not fit. A block
/// holds the part of R transposed that maps the gates of its own units to all units of the head.
pub fn fused_backward(shapes: &Shapes, element_bytes: usize, gpu: Gpu) -> Option<Fused> {
    if shapes.recurrent == 0 || too_many_tensors(shapes) {
        return None;
    }
    let layout = |units: usize| -> Option<Fused> {
        let blocks = shapes.head_dim.div_ceil(units);
        let tiles = blocks * units / 16;
        // In f32, each element of dg that a lane loads serves two units per tile. With at least two
        // tiles per warp, it serves at least four.
        let min_tiles = if element_bytes == 4 { tiles.min(2) } else { 1 };
        let tiles_per_warp = tiles.div_ceil(8).max(min_tiles);
        let fused = Fused {
            blocks,
            units,
            rows: rows(shapes, blocks, gpu),
            compute_warps: 8,
            split_k: 1 << (8 * tiles_per_warp / tiles).max(1).ilog2(),
            tiles_per_warp,
            io_warps: 4,
            stages: 0,
        };
        let fused = if fused.backward_weights(shapes, element_bytes) <= 64 {
            fused
        } else {
            // With 8 warps in total, a thread may have 255 registers.
            let fused = Fused {
                rows: 4,
                compute_warps: 7,
                split_k: 1,
                tiles_per_warp: tiles.div_ceil(7),
                io_warps: 1,
                ..fused
            };
            let fits = element_bytes == 2 && fused.backward_weights(shapes, element_bytes) <= 160;
            fits.then_some(fused)?
        };
        fused.with_stages(gpu, |fused| fused.backward_shared(shapes, element_bytes))
    };
    let one_block =
        [16, 32, 64].into_iter().find(|&units| shapes.head_dim <= units).and_then(layout);
    one_block.or_else(|| cluster_units(shapes, gpu).into_iter().find_map(layout))
}

/// Returns the numbers of units per block of a cluster, the better one first. An exchange takes
/// about the same time with both, so 32 is better if there is a multiprocessor for every block.
fn cluster_units(shapes: &Shapes, gpu: Gpu) -> [usize; 2] {
    let blocks = shapes.head_dim.div_ceil(32) * shapes.heads * shapes.batch.div_ceil(4);
    if blocks <= gpu.multiprocessors { [32, 64] } else { [64, 32] }
}

/// Returns the batch rows per block. With 4 rows, the work per row and unit, which is most of a
/// step, takes half the time. So there are 4 if every block then has its own multiprocessor, and in
/// large clusters, where the exchange dominates.
fn rows(shapes: &Shapes, blocks: usize, gpu: Gpu) -> usize {
    let spread = blocks * shapes.heads * shapes.batch.div_ceil(4) <= gpu.multiprocessors;
    if spread || blocks > 8 { 4 } else { 8 }
}

impl Fused {
    /// Returns the number of threads per block.
    pub fn threads(&self) -> usize {
        32 * (self.compute_warps + self.io_warps)
    }

    /// Returns the number of blocks of a launch.
    pub fn grid(&self, shapes: &Shapes) -> usize {
        self.blocks * shapes.heads * shapes.batch.div_ceil(self.rows)
    }

    /// Returns the layout with the most stages of 8, 6, 4 and 3 that fit in shared memory; more
    /// than 8 would not hide more latency. Returns `None` if 3 stages do not fit, or if the GPU
    /// does not support clusters of this size.
    fn with_stages(self, gpu: Gpu, shared: impl Fn(&Self) -> usize) -> Option<Self> {
        let stages = [8, 6, 4, 3].into_iter().map(|stages| Self { stages, ..self });
        stages
            .filter(|_| self.blocks <= gpu.cluster)
            .find(|fused| shared(fused) <= gpu.shared_memory)
    }

    /// Returns how many steps of 32 along k each warp of the backward kernel takes.
    pub fn backward_steps(&self, shapes: &Shapes) -> usize {
        (shapes.recurrent * self.units).div_ceil(32 * self.split_k)
    }

    /// Returns the registers per thread that hold weights in the backward kernel.
    fn backward_weights(&self, shapes: &Shapes, element_bytes: usize) -> usize {
        self.tiles_per_warp * self.backward_steps(shapes) * 4 * element_bytes
    }

    /// Returns the shared memory of the forward kernel in bytes. This is the size of the struct
    /// `Shared` in kernels/fused/forward_shared.cuh, which checks it.
    pub fn forward_shared(&self, shapes: &Shapes, element_bytes: usize, saves: bool) -> usize {
        let (rows, row) = (self.rows, self.units + 8);
        let k = forward_steps(shapes, self.split_k).next_multiple_of(2) * 16 * self.split_k;
        let h = 2 * rows * (k.max(self.blocks * self.units) + 8);
        let x = self.stages * shapes.external.max(1) * rows * row;
        let saved = if saves { shapes.states - 1 + shapes.gates } else { 0 };
        let saved = 2 * saved.max(1) * rows * row;
        let wide = if saves { wide_tensors(shapes, element_bytes) } else { 0 };
        let parts = if self.split_k > 1 {
            (self.split_k - 1) * rows / 4 * shapes.recurrent.max(1) * self.units * 4
        } else {
            1
        };
        let floats = 2 * wide.max(1) * rows * (self.units + 4)
            + parts.max(rows / 4 * shapes.recurrent.max(1))
            + self.stages;
        (element_bytes * (h + x + saved) + 4 * floats).next_multiple_of(8) + 16
    }

    /// Returns the shared memory of the backward kernel in bytes. This is the size of the struct
    /// `Shared` in kernels/fused/backward_shared.cuh, which checks it.
    pub fn backward_shared(&self, shapes: &Shapes, element_bytes: usize) -> usize {
        let (rows, row) = (self.rows, self.units + 8);
        let dg = 2 * rows * (self.split_k * self.backward_steps(shapes) * 32 + 8);
        let apart = 2 * (shapes.gates - shapes.recurrent).max(1) * rows * row;
        let inputs = self.stages * (shapes.gates + 2 * shapes.states) * rows * row;
        let wide =
            self.stages * wide_tensors(shapes, element_bytes).max(1) * rows * (self.units + 4);
        let before = (element_bytes * (dg + apart + inputs) + 4 * wide).next_multiple_of(16);
        let floats = 2 * self.blocks * self.split_k * self.units * rows + self.stages;
        (before + (4 * floats).next_multiple_of(8) + 16).next_multiple_of(16)
    }
}

/// Returns how many steps of 16 along k each warp of the forward kernel takes. If warps split k,
/// the number is even.
fn forward_steps(shapes: &Shapes, split: usize) -> usize {
    let steps = shapes.head_dim.div_ceil(16);
    if split == 1 { steps } else { steps.div_ceil(2 * split) * 2 }
}

/// Returns the number of states and gates that are saved in f32 when tensors are 16-bit.
fn wide_tensors(shapes: &Shapes, element_bytes: usize) -> usize {
    if element_bytes < 4 { shapes.wide.len() + shapes.wide_gates.len() } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashrnn_core::{Elman, Gru, Lstm, Problem, Slstm};

    const H200: Gpu = Gpu::H200;
    const RTX_4090: Gpu = Gpu::RTX_4090;

    #[test]
    fn cells_with_many_gates_do_not_fit() {
        let shapes = |gates| Shapes {
            gates,
            external: gates,
            ..Problem::new(1, 1, 1, 8).shapes::<Elman>().unwrap()
        };
        for (gates, fits) in [(16, true), (17, false)] {
            assert_eq!(fused_forward(&shapes(gates), 2, H200).is_some(), fits);
            assert_eq!(fused_backward(&shapes(gates), 2, H200).is_some(), fits);
        }
    }

    #[test]
    fn known_problems() {
        let lstm = |batch, heads, head_dim| {
            Problem::new(batch, 1, heads, head_dim).shapes::<Lstm>().unwrap()
        };
        let layout = |fused: Option<Fused>| {
            fused.map(|f| {
                [
                    f.blocks,
                    f.units,
                    f.rows,
                    f.compute_warps,
                    f.split_k,
                    f.tiles_per_warp,
                    f.io_warps,
                ]
            })
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
                        let k = forward_steps(&shapes, fused.split_k) * 16 * fused.split_k;
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
                                && 32 * fused.compute_warps % fused.rows == 0,
                            "{fused:?}"
                        );
                        assert!(
                            fused.compute_warps / fused.split_k * fused.tiles_per_warp >= tiles,
                            "{fused:?}"
                        );
                        assert!(
                            fused.split_k * fused.backward_steps(&shapes) * 32
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
