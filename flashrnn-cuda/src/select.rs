//! Which tile of a step each block computes: pure functions of the problem and the element type.

use flashrnn_core::{Dtype, Shapes};

/// What a block of a step's kernel computes, and with how many warps. The kernels are compiled for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Units of a head.
    pub units: usize,
    /// Rows of the batch.
    pub rows: usize,
    /// Warps, which split the sum over k.
    pub warps: usize,
}

/// How a step's product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Multiply {
    /// Tensor cores, bf16 factors.
    Bf16,
    /// Tensor cores, f16 factors.
    F16,
    /// Tensor cores, f32 factors rounded to TF32.
    Tf32,
    /// Multiply-adds in f32.
    F32,
}

impl Multiply {
    /// For tensors of this type; TF32 only where asked for.
    pub fn new(dtype: Dtype, tf32: bool) -> Self {
        match dtype {
            Dtype::Bf16 => Self::Bf16,
            Dtype::F16 => Self::F16,
            _ if tf32 => Self::Tf32,
            _ => Self::F32,
        }
    }
}

/// The bytes of k in a chunk, the step by which the kernels go through it.
const CHUNK: usize = 64;

/// D rounded up to whole chunks.
pub fn depth(head_dim: usize, element_bytes: usize) -> usize {
    head_dim.next_multiple_of(CHUNK / element_bytes)
}

/// The forward step's tile: its product has `Gr` rows of weights a unit.
///
/// Small tiles, so that a small batch spreads over the device: with 8 units a block an LSTM of 768 units has 96 blocks.
/// The weight rows of a block are at most 64, which bounds its registers.
pub fn forward_tile(shapes: &Shapes, element_bytes: usize) -> Tile {
    let most: usize = if shapes.recurrent == 1 { 16 } else { 8 };
    let units = [16, 8, 4, 2, 1].into_iter().find(|&n| n <= most && n * shapes.recurrent <= 64).unwrap_or(1);
    let chunks = depth(shapes.head_dim, element_bytes) * element_bytes / CHUNK;
    Tile { units, rows: rows(shapes.batch), warps: warps(chunks) }
}

/// The backward step's tile: its product has one row of weights a unit, and k over `Gr` gates. A block has a thread for each
/// unit and row, whose inputs it then fetches before the step after has ended.
pub fn backward_tile(shapes: &Shapes, element_bytes: usize) -> Tile {
    let wide = Tile { units: 16, rows: rows(shapes.batch), warps: 8 };
    // Two blocks of 8 rows read R twice, but a long sum over k is better spread.
    let long = shapes.recurrent * depth(shapes.head_dim, element_bytes) >= 1024;
    if long { Tile { rows: 8, ..wide } } else { wide }
}

fn rows(batch: usize) -> usize {
    if batch <= 8 { 8 } else { 16 }
}

fn warps(chunks: usize) -> usize {
    if chunks <= 8 { 4 } else { 8 }
}

/// What of a device decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Whether blocks can form clusters (compute capability 9.0).
    pub clusters: bool,
    /// Multiprocessors.
    pub multiprocessors: usize,
    /// Bytes of shared memory that a block may have.
    pub shared_memory: usize,
}

/// How a fused kernel spreads a head over blocks and warps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fused {
    /// Blocks of a head: a cluster, 1 to 8.
    pub blocks: usize,
    /// Units of a block, a multiple of 8 (backward 16, 32 or 64).
    pub units: usize,
    /// Rows of the batch in a block: 8, as many as the tensor cores take, or 4.
    pub rows: usize,
    /// Warps that fetch and store while the others compute.
    pub helpers: usize,
    /// Steps of wx in shared memory.
    pub stages: usize,
}

impl Fused {
    /// Threads of a block of the forward kernel, where a warp computes 8 units.
    pub fn forward_threads(&self) -> usize {
        32 * (self.units / 8 + self.helpers)
    }

    /// Threads of a block of the backward kernel.
    pub fn backward_threads(&self) -> usize {
        32 * (BACKWARD_WARPS + self.helpers)
    }

    /// With as many stages as `fits` allows, 8 at most: more than that hides nothing more.
    fn with_stages(self, fits: impl Fn(&Self) -> bool) -> Option<Self> {
        [8, 6, 4, 3].into_iter().map(|stages| Self { stages, ..self }).find(fits)
    }

    /// Blocks of a launch.
    pub fn grid(&self, shapes: &Shapes) -> usize {
        self.blocks * shapes.heads * shapes.batch.div_ceil(self.rows)
    }

    /// Bytes of shared memory of the forward kernel, the struct `Shared` of kernels/fused_forward.cu.
    pub fn forward_shared(&self, shapes: &Shapes, saves: bool) -> usize {
        let (element, row) = (2, self.units + 8);
        let h = 2 * self.rows * (depth(shapes.head_dim, element).max(self.blocks * self.units) + 8);
        let x = self.stages * shapes.external.max(1) * self.rows * row;
        let saved = if saves { shapes.states - 1 + shapes.gates } else { 0 };
        let saved = 2 * saved.max(1) * self.rows * row;
        let wide = if saves { shapes.wide.len() + shapes.wide_gates.len() } else { 0 };
        let floats = 2 * wide.max(1) * self.rows * (self.units + 4) + self.stages;
        (element * (h + x + saved) + 4 * floats).next_multiple_of(8) + 16
    }
}

impl Fused {
    /// Bytes of shared memory of the backward kernel, the struct `Shared` of kernels/fused_backward.cu.
    pub fn backward_shared(&self, shapes: &Shapes) -> usize {
        let (rows, row, wide_row) = (self.rows, self.units + 8, self.units + 4);
        let BackwardTiles { split, steps_of_k, .. } = self.backward_tiles(shapes);
        let apart = (shapes.gates - shapes.recurrent).max(1);
        let narrow = shapes.gates + 2 * shapes.states;
        let wide = (shapes.wide.len() + shapes.wide_gates.len()).max(1);
        let elements = 2 * rows * (split * steps_of_k * 32 + 8)
            + 2 * apart * rows * row
            + self.stages * narrow * rows * row;
        let before = (2 * elements + 4 * self.stages * wide * rows * wide_row).next_multiple_of(16);
        let floats = 2 * self.blocks * split * self.units * rows + self.stages;
        (before + (4 * floats).next_multiple_of(8) + 16).next_multiple_of(16)
    }

    /// How the backward kernel's warps share its product, the constants of kernels/fused_backward.cu.
    fn backward_tiles(&self, shapes: &Shapes) -> BackwardTiles {
        let tiles = self.blocks * self.units / 16;
        let split = (BACKWARD_WARPS / tiles).max(1);
        let steps_of_k = (shapes.recurrent * self.units).div_ceil(32 * split);
        BackwardTiles { of_warp: tiles.div_ceil(BACKWARD_WARPS), split, steps_of_k }
    }
}

/// A warp of the backward kernel has `of_warp` tiles of 16 units, and of k one of `split` parts: `steps_of_k` times 32.
struct BackwardTiles {
    of_warp: usize,
    split: usize,
    steps_of_k: usize,
}

/// The warps of the fused backward kernel that compute.
const BACKWARD_WARPS: usize = 8;

/// How the fused backward kernel runs, where it can: a block holds R transposed for all of the head's units and the gates of
/// its own.
pub fn fused_backward(shapes: &Shapes, element_bytes: usize, gpu: Gpu) -> Option<Fused> {
    if element_bytes != 2 {
        return None;
    }
    let choice = |units: usize| {
        let blocks = shapes.head_dim.div_ceil(units);
        if blocks > 8 || (blocks > 1 && !gpu.clusters) {
            return None;
        }
        let fused = Fused { blocks, units, rows: fused_rows(shapes, blocks, gpu), helpers: 4, stages: 0 };
        let BackwardTiles { of_warp, steps_of_k, .. } = fused.backward_tiles(shapes);
        let holds_weights = of_warp * steps_of_k * 8 <= WEIGHT_REGISTERS / 2;
        fused.with_stages(|fused| holds_weights && fused.backward_shared(shapes) <= gpu.shared_memory)
    };
    let one_block = [16, 32, 64].into_iter().find(|&units| shapes.head_dim <= units).and_then(choice);
    one_block.or_else(|| cluster_units(shapes, gpu).into_iter().find_map(choice))
}

/// The units of a block in a cluster, what is better first: half as many where all blocks still find a multiprocessor, since
/// an exchange takes about the same time.
fn cluster_units(shapes: &Shapes, gpu: Gpu) -> [usize; 2] {
    let spread =
        shapes.head_dim.div_ceil(32) * shapes.heads * shapes.batch.div_ceil(4) <= gpu.multiprocessors;
    if spread { [32, 64] } else { [64, 32] }
}

/// The rows of the batch in a block of a fused kernel: 4 where all blocks still find a multiprocessor, since what is done for each
/// row and unit, most of the work of a step, then takes half the time.
fn fused_rows(shapes: &Shapes, blocks: usize, gpu: Gpu) -> usize {
    let spread = blocks * shapes.heads * shapes.batch.div_ceil(4) <= gpu.multiprocessors;
    if spread { 4 } else { 8 }
}

/// The registers of a thread that may hold weights.
const WEIGHT_REGISTERS: usize = 128;

/// How the fused forward kernel runs, where it can: 16-bit tensors, a head whose rows of R fit the registers of at most 8 blocks.
///
/// A thread holds `2 Gr` bytes for each k of its unit, in tiles of two gates: 4 registers for 16 of k. The more registers that
/// takes, the fewer warps a block can have: with 64, 12 warps; with 128, 8.
pub fn fused_forward(shapes: &Shapes, element_bytes: usize, gpu: Gpu) -> Option<Fused> {
    let tiles = shapes.recurrent.div_ceil(2);
    let weights = tiles * shapes.head_dim.div_ceil(16) * 4;
    if element_bytes != 2 || weights > WEIGHT_REGISTERS {
        return None;
    }
    let most = match shapes.head_dim {
        _ if weights > WEIGHT_REGISTERS / 2 => 32,
        ..=64 => 64,
        _ => cluster_units(shapes, gpu)[0],
    };
    let blocks = shapes.head_dim.div_ceil(most);
    if blocks > 8 || (blocks > 1 && !gpu.clusters) {
        return None;
    }
    let units = shapes.head_dim.div_ceil(blocks).next_multiple_of(8);
    // Where registers allow it, as many warps carry as compute.
    let helpers = if weights <= WEIGHT_REGISTERS / 4 { 8 } else { 4 };
    let blocks = shapes.head_dim.div_ceil(units);
    let fused = Fused { blocks, units, rows: fused_rows(shapes, blocks, gpu), helpers, stages: 0 };
    fused.with_stages(|fused| fused.forward_shared(shapes, true) <= gpu.shared_memory)
}

/// Whether every row of D 16-bit elements of every tensor begins at a multiple of 16 bytes, if the tensor does.
pub fn aligned(shapes: &Shapes) -> bool {
    shapes.head_dim.is_multiple_of(8)
}

/// The blocks of a step.
pub fn blocks(shapes: &Shapes, tile: Tile) -> usize {
    shapes.head_dim.div_ceil(tile.units) * shapes.heads * shapes.batch.div_ceil(tile.rows)
}

/// Into how many parts of the tokens a sum over all of them is cut, and how long each is: as many as keep `multiprocessors`
/// busy where each part is `blocks` blocks, none shorter than 256 tokens, and at most 64; up to twice as many, or down to half,
/// where then nothing is left over. What is, less than a part, is a part of its own.
pub fn parts(tokens: usize, blocks: usize, multiprocessors: usize) -> (usize, usize) {
    let most = (tokens / 256).clamp(1, 64);
    let wanted = (2 * multiprocessors).div_ceil(blocks.max(1)).clamp(1, most);
    let mut near = (wanted..=most.min(2 * wanted)).chain((wanted.div_ceil(2)..wanted).rev());
    let parts = near.find(|&parts| tokens.is_multiple_of(parts)).unwrap_or(wanted);
    (parts, tokens / parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashrnn_core::{Elman, Gru, Lstm, Problem, Slstm};

    const H200: Gpu = Gpu { clusters: true, multiprocessors: 132, shared_memory: 227 << 10 };
    const RTX_4090: Gpu = Gpu { clusters: false, multiprocessors: 128, shared_memory: 99 << 10 };

    #[test]
    fn fused_kernels_of_known_problems() {
        let lstm = |batch, heads, head_dim| Problem::new(batch, 1, heads, head_dim).shapes::<Lstm>().unwrap();
        let small = fused_forward(&lstm(16, 12, 64), 2, H200).unwrap();
        assert_eq!(small, Fused { blocks: 1, units: 64, rows: 4, helpers: 8, stages: 8 });
        assert_eq!((small.grid(&lstm(16, 12, 64)), small.forward_threads()), (48, 512));
        let large = fused_forward(&lstm(16, 3, 256), 2, H200).unwrap();
        assert_eq!(large, Fused { blocks: 8, units: 32, rows: 4, helpers: 4, stages: 8 });
        let backward = fused_backward(&lstm(16, 12, 64), 2, H200).unwrap();
        assert_eq!(backward, Fused { blocks: 1, units: 64, rows: 4, helpers: 4, stages: 8 });
        for fused in [fused_forward, fused_backward] {
            assert_eq!(fused(&lstm(256, 12, 64), 2, H200).unwrap().rows, 8);
        }
        assert_eq!(fused_forward(&lstm(16, 1, 768), 2, H200), None);
        assert_eq!(fused_forward(&lstm(16, 12, 64), 4, H200), None);
        assert_eq!(fused_forward(&lstm(16, 6, 128), 2, RTX_4090), None);
    }

    #[test]
    fn fused_kernels_cover_the_head_and_fit_the_device() {
        for head_dim in 1..=600 {
            for gpu in [H200, RTX_4090] {
                let shapes = [
                    Problem::new(16, 1, 3, head_dim).shapes::<Slstm>().unwrap(),
                    Problem::new(16, 1, 3, head_dim).shapes::<Gru>().unwrap(),
                    Problem::new(16, 1, 3, head_dim).shapes::<Elman>().unwrap(),
                ];
                for shapes in shapes {
                    if let Some(fused) = fused_forward(&shapes, 2, gpu) {
                        assert!(fused.blocks * fused.units >= head_dim && fused.blocks <= 8, "{fused:?}");
                        assert!(
                            (fused.blocks - 1) * fused.units < head_dim,
                            "{fused:?}: a block without units"
                        );
                        assert!(fused.units.is_multiple_of(8) && fused.forward_threads() <= 512, "{fused:?}");
                        assert!(fused.forward_shared(&shapes, true) <= gpu.shared_memory, "{fused:?}");
                    }
                    if let Some(fused) = fused_backward(&shapes, 2, gpu) {
                        // In a cluster each group of 8 units up to `depth` has a block that sends it.
                        let covered = if fused.blocks == 1 { head_dim } else { depth(head_dim, 2) };
                        assert!(fused.blocks * fused.units >= covered, "{fused:?}");
                        assert!([16, 32, 64].contains(&fused.units) && fused.blocks <= 8, "{fused:?}");
                        assert!(fused.backward_shared(&shapes) <= gpu.shared_memory, "{fused:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn tiles_of_known_problems() {
        let lstm = |batch, heads, head_dim| Problem::new(batch, 1, heads, head_dim).shapes::<Lstm>().unwrap();
        assert_eq!(forward_tile(&lstm(16, 12, 64), 2), Tile { units: 8, rows: 16, warps: 4 });
        assert_eq!(forward_tile(&lstm(1, 1, 768), 2), Tile { units: 8, rows: 8, warps: 8 });
        assert_eq!(backward_tile(&lstm(16, 12, 64), 2), Tile { units: 16, rows: 16, warps: 8 });
        assert_eq!(backward_tile(&lstm(16, 1, 768), 2), Tile { units: 16, rows: 8, warps: 8 });
        assert_eq!(blocks(&lstm(16, 1, 768), Tile { units: 8, rows: 16, warps: 8 }), 96);
        assert_eq!(blocks(&lstm(17, 3, 1), Tile { units: 8, rows: 16, warps: 4 }), 6);
        let elman = Problem::new(16, 1, 1, 768).shapes::<Elman>().unwrap();
        assert_eq!(forward_tile(&elman, 4).units, 16);
        let gru = Problem::new(16, 1, 3, 256).shapes::<Gru>().unwrap();
        assert_eq!(forward_tile(&gru, 2), Tile { units: 8, rows: 16, warps: 4 });
    }

    #[test]
    fn depth_is_whole_chunks() {
        for (head_dim, bytes, want) in [(1, 2, 32), (32, 2, 32), (33, 2, 64), (1, 4, 16), (17, 4, 32)] {
            assert_eq!(depth(head_dim, bytes), want);
        }
    }

    #[test]
    fn parts_cover_the_tokens_up_to_less_than_a_part() {
        for tokens in [1, 255, 256, 257, 16384, 16381, 100_000, 1 << 33] {
            for blocks in [1, 48, 144, 1000] {
                let (parts, length) = parts(tokens, blocks, 132);
                assert!(parts * length <= tokens && tokens - parts * length < length, "{tokens} {blocks}");
                assert!(parts == 1 || (parts <= 64 && length >= 256), "{tokens} {blocks}");
            }
        }
    }

    #[test]
    fn parts_leave_nothing_over_where_they_can() {
        // Parts of 48 blocks: 6 are wanted. More come before fewer, and 6 it is where none from 3 to 12 divides the tokens.
        for (tokens, want) in [(12 * 512, 6), (16 * 1024, 8), (7 * 512, 7), (5 * 521, 5), (13 * 17 * 19, 6)] {
            assert_eq!(parts(tokens, 48, 132), (want, tokens / want), "{tokens}");
        }
        // 6 divide, but 256 tokens a part allow 4.
        assert_eq!(parts(1026, 48, 132), (3, 342));
        assert_eq!(parts(0, 48, 132), (1, 0));
    }
}
