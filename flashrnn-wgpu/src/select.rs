//! Which kernels run a problem, and sizes of tiles, parts and dispatches: pure functions.

use std::ops::Range;

use flashrnn_core::{Dtype, Shapes};

/// The most workgroups along one dimension that every device takes.
pub const GROUPS_X: usize = 65535;

/// The rounds of a loop that every driver runs to their end: some (Mesa 22.3's lavapipe) end it silently after 65,535.
pub const LONGEST_LOOP: usize = 32768;

/// The most rounds of a kernel's loop: those of the backward pass's product, with the smallest [`chunk`].
pub fn longest_loop(shapes: &Shapes) -> usize {
    shapes.head_dim.div_ceil(4) * shapes.recurrent
}

/// Elements of k that a product brings to workgroup memory at a time, for a cell with this many recurrent gates; `None` where
/// even the fewest take more than `workgroup_bytes`.
pub fn chunk(recurrent: usize, workgroup_bytes: usize) -> Option<usize> {
    [32, 16, 8, 4]
        .into_iter()
        .find(|chunk| (recurrent + 1) * 16 * (chunk + 1) * size_of::<f32>() <= workgroup_bytes)
}

/// The pieces, of 4 words, of the packed weights: those that every plan has, and those of the fused kernels.
pub fn packed(shapes: &Shapes, fused: Option<Fused>, narrow: bool) -> [usize; 2] {
    let lines = shapes.recurrent * shapes.heads * shapes.head_dim;
    let plain =
        2 * lines * shapes.head_dim.div_ceil(4) + (shapes.gates * shapes.heads * shapes.head_dim).div_ceil(4);
    [plain, fused.map_or(0, |fused| 2 * shapes.heads * fused.pieces(shapes, piece(narrow)))]
}

/// How a kernel of one step computes its product: 256 threads have 8 units of a head and 16 rows. The names are those of
/// shaders/step.wgsl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Lines of weights of a thread.
    pub lines: usize,
    /// Threads that share a sum, each with every so-many-th piece of k.
    pub parts: usize,
    /// Pieces of each line that a thread has in registers.
    pub pieces: usize,
    /// How often workgroup memory is filled; 0: the kernel counts, for it serves heads of all sizes.
    pub rounds: usize,
    /// Lines whose sums are added up at a time.
    pub at_once: usize,
    /// Parts of a sum that the threads of a subgroup add up among themselves; 1 where subgroups are not used.
    pub together: usize,
}

/// Registers of a thread that hold weights: of this round, and of the next if there is one.
const WEIGHTS: usize = 128;

impl Tile {
    /// Of the forward pass: a thread has the recurrent gates of a unit.
    pub fn forward(shapes: &Shapes, adapter: Adapter) -> Self {
        Self::new(shapes.recurrent, 8, shapes.head_dim.div_ceil(4), adapter)
    }

    /// Of the backward pass: a thread has 4 units.
    pub fn backward(shapes: &Shapes, adapter: Adapter) -> Self {
        Self::new(4, 32, shapes.recurrent * shapes.head_dim.div_ceil(4), adapter)
    }

    fn new(lines: usize, parts: usize, length: usize, adapter: Adapter) -> Self {
        let Adapter { workgroup_bytes, subgroup, .. } = adapter;
        // Whole loads of 256 threads: 16 rows of at least 16 pieces.
        let least = 16usize.div_ceil(parts);
        let with = |pieces: usize| {
            let rounds = if adapter.cpu { 0 } else { length.div_ceil(parts * pieces) };
            Self { lines, parts, pieces, rounds, at_once: 1, together: 1 }
        };
        let fits = |tile: &Self| {
            let registers = 4 * tile.lines * tile.pieces * tile.rounds.min(2);
            registers <= WEIGHTS && tile.workgroup_bytes() <= workgroup_bytes
        };
        // No more than one round needs.
        let most = if adapter.cpu { least } else { length.div_ceil(parts).next_power_of_two() };
        let tile =
            [8, 4, 2, 1].into_iter().filter(|&pieces| least <= pieces && pieces <= most).map(with).find(fits);
        let tile = tile.unwrap_or(with(least));
        let fits = |tile: &Self| tile.workgroup_bytes() <= workgroup_bytes;
        // A part has 4 threads, one beside the other.
        let together = Self { at_once: lines, together: (subgroup / 4).clamp(1, parts), ..tile };
        let alone = (1..=lines).rev().map(|at_once| Self { at_once, ..tile });
        std::iter::once(together).chain(alone).find(fits).unwrap_or(tile)
    }

    /// Sums of a thread, with those that fill up fours where subgroups add them up.
    pub fn held(self) -> usize {
        if self.together == 1 { self.lines } else { self.lines.next_multiple_of(4) }
    }

    /// Pieces of the rows that a thread brings to workgroup memory in a round.
    pub fn loads(self) -> usize {
        16 * self.parts * self.pieces / 256
    }

    /// Sums that are added up at a time, by 4 rows.
    fn sums(self) -> usize {
        256 / self.parts * self.at_once
    }

    /// Parts of a sum in workgroup memory.
    fn kept(self) -> usize {
        self.parts / self.together
    }

    /// Threads that share the adding of a sum's parts.
    pub fn adders(self) -> usize {
        1 << (256 / self.sums()).clamp(1, self.kept()).ilog2()
    }

    /// Bytes of workgroup memory.
    pub fn workgroup_bytes(self) -> usize {
        16 * (16 * (self.parts * self.pieces + 2)).max(self.sums() * self.kept())
    }
}

/// The elements that partial sums take, unless one part takes more.
const MOST_PARTIAL: usize = 1 << 24;

/// A sum over tokens in parts: how many, and the tokens of each. `columns` is what one part takes, in elements, `round` the tokens that
/// one round of the kernel's loop adds, and `least` the fewest of a part but the last.
pub fn parts(tokens: usize, columns: usize, [round, least]: [usize; 2]) -> (usize, usize) {
    let most = (MOST_PARTIAL / columns.max(1)).clamp(1, 64);
    let length = tokens.div_ceil(most).clamp(least, LONGEST_LOOP * round);
    (tokens.div_ceil(length), length)
}

/// Of `weight_gradient` and of `bias_gradient`: the tokens of a round, and the fewest of a part, whose sums cost memory's time.
pub const GRADIENT_ROUNDS: [[usize; 2]; 2] = [[8, 512], [1, 256]];

/// How `weight_gradient` computes its product. The names are those of shaders/gradients.wgsl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gradient {
    /// Fours of units of an invocation, along each side of a tile.
    pub fours: usize,
    /// Tokens whose products are written out.
    pub at_once: usize,
}

impl Gradient {
    /// For heads of so many units. A CPU's drivers take seconds to compile what is written out.
    pub fn new(head_dim: usize, adapter: Adapter) -> Self {
        let fours = if !adapter.cpu && head_dim > 64 { 2 } else { 1 };
        Self { fours, at_once: if adapter.cpu { 1 } else { 16 / fours } }
    }

    /// The side of a tile.
    pub fn width(self) -> usize {
        64 * self.fours
    }
}

/// The side of a tile of the gradient of R by cooperative matrices, or `None` where it is not made by them.
pub fn matrix_width(head_dim: usize, element: Dtype, adapter: Adapter) -> Option<usize> {
    let fits = |width: &usize| {
        let bytes = 2 * 32 * (width + 8) * size_of::<u16>();
        head_dim.is_multiple_of(*width) && bytes <= adapter.workgroup_bytes && adapter.invocations >= 256
    };
    [128, 64].into_iter().filter(|_| adapter.matrix && element == Dtype::F16).find(fits)
}

/// The elements that gates computed again take, unless one step takes more.
const MOST_GATES: usize = 1 << 24;

/// The most time steps whose gates are computed again at a time. A step has `step` of them.
pub fn gates_steps(time: usize, step: usize) -> usize {
    (MOST_GATES / step.max(1)).clamp(1, time.max(1))
}

/// All steps in ranges of at most `steps`, the last first; one that is empty where there are none.
pub fn from_the_last(time: usize, steps: usize) -> impl Iterator<Item = Range<usize>> {
    let steps = steps.max(1);
    (0..time.div_ceil(steps).max(1)).rev().map(move |i| i * steps..time.min((i + 1) * steps))
}

/// A dispatch of so many workgroups, in two dimensions.
pub fn dispatch(groups: usize) -> [u32; 3] {
    [groups.min(GROUPS_X) as u32, groups.div_ceil(GROUPS_X) as u32, 1]
}

/// Which kernels plans use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Family {
    /// Fused where they can be.
    #[default]
    Auto,
    /// Many time steps in one dispatch; a plan that can't is an error.
    Fused,
    /// A dispatch a step.
    Alternating,
}

/// Which kernels a [`Wgpu`](crate::Wgpu) was told to take.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choice {
    pub family: Family,
    /// For tests and measurements: in place of what [`Fused::new`] chooses.
    pub fused: Option<Fused>,
    /// For tests: on a CPU's drivers too, the kernels that only GPUs get otherwise.
    pub as_on_gpus: bool,
}

impl Choice {
    /// What kernels are chosen for.
    pub fn adapter(self, adapter: Adapter) -> Adapter {
        Adapter { cpu: adapter.cpu && !self.as_on_gpus, ..adapter }
    }

    /// The fused kernels for a problem, or `None` for the alternating ones.
    pub fn fused(self, shapes: &Shapes, adapter: Adapter, element: Dtype) -> Option<Fused> {
        match self.family {
            Family::Alternating => None,
            Family::Auto | Family::Fused => self
                .fused
                .filter(|fused| fused.units >= shapes.head_dim)
                .or_else(|| Fused::new(shapes, adapter, element)),
        }
    }
}

/// What of an adapter decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adapter {
    /// The driver runs on the CPU.
    pub cpu: bool,
    /// Invocations that a workgroup may have.
    pub invocations: usize,
    /// Bytes of workgroup memory that a workgroup may have.
    pub workgroup_bytes: usize,
    /// There are cooperative matrices of 16 x 16, f16 in and f32 out, in subgroups of 32.
    pub matrix: bool,
    /// Threads of a subgroup where its operations may add sums up, else 1.
    pub subgroup: usize,
}

/// A CPU's drivers compile a kernel for seconds, so that they have fewer and shorter ones.
impl Adapter {
    /// Whether the kernels of one step use subgroup operations. A CPU's drivers would take twice as long to run them, too.
    pub fn subgroups(self) -> bool {
        self.subgroup > 1 && !self.cpu
    }

    /// Whether there are kernels for heads of this size whose pairs of 16-bit units are whole words, as they are in tensors that begin at
    /// an even element.
    pub fn words(self, head_dim: usize) -> bool {
        head_dim.is_multiple_of(2) && !self.cpu
    }
}

/// [`Adapter::subgroup`]: all subgroups must have this size and be parts of a workgroup of 256. `has`: the device has such operations, on
/// subgroups of `least` to `most` threads.
pub fn subgroup(has: bool, least: u32, most: u32) -> usize {
    if has && least == most && [8, 16, 32, 64, 128].contains(&most) { most as usize } else { 1 }
}

/// The most time steps of one dispatch of a fused kernel: a few milliseconds on a GPU, so that no watchdog ends it, and no loop
/// longer than [`LONGEST_LOOP`].
pub const FUSED_STEPS: usize = 2048;

/// How a workgroup of a fused kernel is cut: it has one head and some rows of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fused {
    /// Units of the head, D padded with zeros.
    pub units: usize,
    /// Parts of k: a workgroup has `units * split` threads.
    pub split: usize,
    /// Rows of the batch.
    pub rows: usize,
    /// Registers of a thread for its weights and sums: weights that find no room are read again at every step.
    pub registers: usize,
}

/// What a thread of a fused kernel has of R: lines along k, in chunks. The names are those of shaders/fused.wgsl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lines {
    /// Lines: forward the gates of a unit, backward some units.
    pub lines: usize,
    /// Threads that have lines.
    pub threads: usize,
    /// Pieces of each line in a chunk.
    pub groups: usize,
    /// Chunks.
    pub chunks: usize,
    /// Chunks that stay in registers; the others are read again at every step.
    pub kept: usize,
    /// 16-bit weights are f32 in registers.
    pub wide: bool,
}

/// Numbers along k in a piece of weights, 4 words.
pub fn piece(narrow: bool) -> usize {
    if narrow { 8 } else { 4 }
}

/// Registers of a multiprocessor, and the most of one thread, of which a quarter is for other things than weights and sums. No interface
/// tells them; these are NVIDIA's. Where there are fewer, R is spilled: slow, but right.
const REGISTERS: (usize, usize) = (65536, 255);

/// Pieces of a thread in a chunk: so many are read at a time where not all are in registers.
const PIECES_AT_ONCE: usize = 8;

/// The most bytes of R, of a head, that are read at every step; beyond, a dispatch a step is faster.
const MOST_STREAMED: usize = 5 << 18;

/// The most threads of a workgroup that reads R at every step, f32 and 16-bit: with more they have no registers for what is under way.
const MOST_STREAMING: [usize; 2] = [256, 512];

/// As many workgroups keep a GPU busy; with fewer, a workgroup has fewer rows.
const ENOUGH_GROUPS: usize = 64;

impl Fused {
    /// Threads of a workgroup.
    pub fn threads(self) -> usize {
        self.units * self.split
    }

    /// Elements of k in a part.
    pub fn depth(self) -> usize {
        self.units / self.split
    }

    /// Tensors that the threads carry at a time, each thread two units of a row.
    pub fn turns(self) -> usize {
        2 * self.split / self.rows
    }

    /// Units that a thread of the backward product has, so that all threads hold weights, or nearly all.
    pub fn tile(self, shapes: &Shapes) -> usize {
        shapes.recurrent.next_power_of_two()
    }

    /// Whether the forward kernel has what a step reads and what it writes apart: with whole sums, no barrier lies between.
    pub fn buffers(self) -> usize {
        if self.split == 1 { 2 } else { 1 }
    }

    /// Pieces, of so many numbers, of R of a head.
    pub fn pieces(self, shapes: &Shapes, piece: usize) -> usize {
        self.units / piece * shapes.recurrent * self.units
    }

    /// Of the forward kernel.
    pub fn forward(self, shapes: &Shapes, narrow: bool) -> Lines {
        self.lines(shapes.recurrent, self.threads(), narrow)
    }

    /// Of the backward kernel.
    pub fn backward(self, shapes: &Shapes, narrow: bool) -> Lines {
        let tile = self.tile(shapes);
        self.lines(tile, shapes.recurrent * self.threads() / tile, narrow)
    }

    fn lines(self, lines: usize, threads: usize, narrow: bool) -> Lines {
        let pieces = self.depth() / piece(narrow);
        let groups = (1..=pieces)
            .rev()
            .find(|groups| {
                pieces.is_multiple_of(*groups) && (groups * lines <= PIECES_AT_ONCE || *groups == 1)
            })
            .unwrap_or(1);
        let chunks = pieces / groups;
        let room = self.registers.saturating_sub(lines * self.rows);
        let chunk = 4 * groups * lines;
        let (kept, wide) = if narrow && 2 * chunk * chunks <= room {
            (chunks, true)
        } else if chunk * chunks <= room {
            (chunks, false)
        } else {
            // Beside half a chunk that was read.
            (room.saturating_sub(chunk / 2) / chunk, false)
        };
        Lines { lines, threads, groups, chunks, kept, wide }
    }

    /// Workgroups of a dispatch.
    pub fn groups(self, shapes: &Shapes) -> usize {
        shapes.heads * shapes.batch.div_ceil(self.rows)
    }

    /// Bytes of workgroup memory of the forward and of the backward kernel.
    pub fn workgroup_bytes(self, shapes: &Shapes, narrow: bool) -> [usize; 2] {
        let Shapes { recurrent, external, states, gates, .. } = *shapes;
        let shared = if self.split > 1 { self.split * recurrent } else { 0 };
        let forward = shared + self.buffers() * (external.max(1) + states + gates);
        let backward = self.split * recurrent + gates + 2 * states;
        // BETWEEN of shaders/fused.wgsl, for each chunk.
        let x = |parts, lines: Lines| parts * self.split * (self.depth() + 4 * lines.chunks);
        let x = [x(self.buffers(), self.forward(shapes, narrow)), x(gates, self.backward(shapes, narrow))];
        [0, 1].map(|pass| ([forward, backward][pass] * self.units + x[pass]) * self.rows * size_of::<f32>())
    }

    fn fits(self, shapes: &Shapes, adapter: Adapter, narrow: bool) -> bool {
        self.threads() <= adapter.invocations
            && self.rows <= self.split
            && self.depth().is_multiple_of(8)
            && self.tile(shapes) <= self.units
            && self.workgroup_bytes(shapes, narrow).into_iter().all(|bytes| bytes <= adapter.workgroup_bytes)
    }

    /// Whether no weights are read again at every step.
    fn keeps_all(self, shapes: &Shapes, narrow: bool) -> bool {
        [self.forward(shapes, narrow), self.backward(shapes, narrow)]
            .iter()
            .all(|lines| lines.kept == lines.chunks)
    }

    /// The fused kernels for a problem, the same for any T; `None` where a step does not fit a workgroup's memory, or R is too large
    /// to be read at every step. `element`: T.
    pub fn new(shapes: &Shapes, adapter: Adapter, element: Dtype) -> Option<Self> {
        let narrow = element != Dtype::F32;
        let units = [8, 16, 32, 64, 96, 128, 192, 256, 384, 512]
            .into_iter()
            .find(|&units| units >= shapes.head_dim)?;
        let groups = |rows| shapes.heads * shapes.batch.div_ceil(rows);
        let mut wanted = [4, 2].into_iter().find(|&rows| groups(rows) >= ENOUGH_GROUPS).unwrap_or(1);
        // A CPU has no registers for R, and its drivers take seconds to compile what is written out: there the smallest heads
        // alone are fused, in f32, all in one way.
        if adapter.cpu {
            if units > 8 || narrow {
                return None;
            }
            wanted = 1;
        }
        let rows = [4, 2, 1].into_iter().filter(|&rows| rows <= wanted);
        let cuts = |splits: [usize; 3]| {
            let cut = move |rows| {
                splits.map(|split| {
                    let threads = units * split;
                    let registers = (REGISTERS.0 / threads).min(REGISTERS.1) / 4 * 3;
                    Self { units, split, rows, registers }
                })
            };
            rows.clone().flat_map(cut).filter(|fused| fused.fits(shapes, adapter, narrow))
        };
        let bytes = shapes.recurrent * units * units * if narrow { 2 } else { 4 };
        let all = cuts([4, 2, 1]).find(|fused| fused.keeps_all(shapes, narrow));
        let most = MOST_STREAMING[usize::from(narrow)];
        all.or_else(|| cuts([4, 2, 1]).find(|fused| bytes <= MOST_STREAMED && fused.threads() <= most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashrnn_core::{Elman, Gru, Lstm, Problem, Slstm};

    const H200: Adapter =
        Adapter { cpu: false, invocations: 1024, workgroup_bytes: 48 << 10, matrix: false, subgroup: 32 };
    /// What every device has.
    const LEAST: Adapter =
        Adapter { cpu: false, invocations: 256, workgroup_bytes: 16 << 10, matrix: false, subgroup: 1 };

    #[test]
    fn fused_where_a_head_fits_a_workgroup() {
        let lstm = |batch, heads, head_dim| Problem::new(batch, 1, heads, head_dim).shapes::<Lstm>().unwrap();
        let fused = |shapes: Shapes, adapter, narrow| {
            let element = if narrow { Dtype::Bf16 } else { Dtype::F32 };
            let fused = Fused::new(&shapes, adapter, element)?;
            let kept = [fused.forward(&shapes, narrow), fused.backward(&shapes, narrow)].map(|lines| {
                format!("{}{}/{}", if lines.wide { "wide " } else { "" }, lines.kept, lines.chunks)
            });
            Some((fused.units, fused.split, fused.rows, kept))
        };
        let of = |units, split, rows, kept: [&str; 2]| Some((units, split, rows, kept.map(String::from)));
        assert_eq!(fused(lstm(16, 12, 64), H200, false), of(64, 4, 2, ["2/2", "2/2"]));
        assert_eq!(fused(lstm(16, 12, 64), H200, true), of(64, 4, 2, ["wide 1/1", "wide 1/1"]));
        assert_eq!(fused(lstm(16, 12, 64), LEAST, false), of(64, 4, 2, ["2/2", "2/2"]));
        assert_eq!(fused(lstm(1, 1, 64), H200, false), of(64, 4, 1, ["2/2", "2/2"]));
        assert_eq!(fused(lstm(256, 12, 64), H200, false), of(64, 4, 4, ["2/2", "2/2"]));
        assert_eq!(fused(lstm(256, 12, 64), LEAST, false), of(64, 4, 2, ["2/2", "2/2"]));
        assert_eq!(fused(lstm(16, 12, 33), H200, false), of(64, 4, 2, ["2/2", "2/2"]));
        assert_eq!(fused(lstm(16, 6, 128), H200, true), of(128, 4, 1, ["2/2", "2/2"]));
        assert_eq!(fused(lstm(16, 6, 128), LEAST, true), of(128, 2, 1, ["4/4", "4/4"]));
        assert_eq!(fused(lstm(16, 3, 256), H200, true), of(256, 2, 1, ["2/8", "2/8"]));
        assert_eq!(fused(lstm(16, 3, 256), H200, false), of(256, 1, 1, ["5/32", "5/32"]));
        assert_eq!(fused(lstm(16, 3, 256), LEAST, true), None);
        assert_eq!(fused(lstm(16, 3, 384), H200, true), of(384, 1, 1, ["3/24", "3/24"]));
        assert_eq!(fused(lstm(16, 3, 384), H200, false), None);
        assert_eq!(fused(lstm(16, 2, 512), H200, true), None);
        let elman = Problem::new(1, 1, 1, 128).shapes::<Elman>().unwrap();
        assert_eq!(fused(elman.clone(), H200, false), of(128, 4, 1, ["1/1", "1/1"]));
        assert_eq!(fused(elman, LEAST, false), of(128, 2, 1, ["2/2", "2/2"]));
        let gru = Problem::new(16, 1, 12, 1).shapes::<Gru>().unwrap();
        assert_eq!(fused(gru, LEAST, false), of(8, 1, 1, ["1/1", "1/1"]));
        let cpu = Adapter { cpu: true, ..H200 };
        assert_eq!(fused(lstm(16, 12, 8), cpu, false), of(8, 1, 1, ["1/1", "1/1"]));
        assert_eq!(fused(lstm(16, 12, 9), cpu, false), None);
    }

    #[test]
    fn fused_kernels_fit_the_adapter() {
        for adapter in [H200, LEAST] {
            for (batch, heads) in [(1, 1), (16, 12), (256, 12)] {
                for head_dim in 1..=256 {
                    let problem = Problem::new(batch, 1, heads, head_dim);
                    for shapes in
                        [problem.shapes::<Elman>(), problem.shapes::<Gru>(), problem.shapes::<Slstm>()]
                    {
                        let shapes = shapes.unwrap();
                        for element in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
                            let narrow = element != Dtype::F32;
                            let Some(fused) = Fused::new(&shapes, adapter, element) else { continue };
                            assert!(fused.units >= head_dim && fused.threads() <= adapter.invocations);
                            let bytes = fused.workgroup_bytes(&shapes, narrow);
                            assert!(bytes.iter().all(|&bytes| bytes <= adapter.workgroup_bytes));
                            // A turn or more; whole chunks of whole pieces.
                            assert!(fused.turns() * fused.rows == 2 * fused.split);
                            for lines in [fused.forward(&shapes, narrow), fused.backward(&shapes, narrow)] {
                                let pieces = fused.depth() / piece(narrow);
                                assert!(lines.chunks * lines.groups == pieces && lines.kept <= lines.chunks);
                                let all = pieces * lines.lines * lines.threads;
                                assert_eq!(fused.pieces(&shapes, piece(narrow)), all);
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn tiles_cover_k_and_fit_workgroup_memory() {
        let tile = |lines, parts, pieces, rounds, at_once, together| Tile {
            lines,
            parts,
            pieces,
            rounds,
            at_once,
            together,
        };
        let lstm = Problem::new(16, 1, 3, 256).shapes::<Lstm>().unwrap();
        let cpu = Adapter { cpu: true, subgroup: 8, ..H200 };
        assert_eq!(Tile::forward(&lstm, H200), tile(4, 8, 8, 1, 4, 8));
        assert_eq!(Tile::forward(&lstm, Adapter { subgroup: 1, ..H200 }), tile(4, 8, 8, 1, 4, 1));
        assert_eq!(Tile::forward(&lstm, LEAST), tile(4, 8, 4, 2, 4, 1));
        assert_eq!(Tile::forward(&lstm, cpu), tile(4, 8, 2, 0, 4, 2));
        assert_eq!(Tile::backward(&lstm, H200), tile(4, 32, 4, 2, 4, 8));
        assert_eq!(Tile::backward(&lstm, Adapter { subgroup: 1, ..H200 }), tile(4, 32, 4, 2, 4, 1));
        assert_eq!(Tile::backward(&lstm, cpu), tile(4, 32, 1, 0, 4, 2));
        // So many lines find no room together.
        let wide = Shapes { recurrent: 12, ..lstm };
        assert_eq!(Tile::forward(&wide, Adapter { subgroup: 8, ..LEAST }).together, 1);
        for head_dim in 1..=600 {
            for adapter in
                [LEAST, Adapter { subgroup: 8, ..LEAST }, H200, Adapter { subgroup: 128, ..H200 }, cpu]
            {
                let problem = Problem::new(16, 1, 3, head_dim);
                for shapes in [problem.shapes::<Elman>(), problem.shapes::<Gru>(), problem.shapes::<Lstm>()] {
                    let shapes = shapes.unwrap();
                    let pieces = head_dim.div_ceil(4);
                    let tiles = [Tile::forward(&shapes, adapter), Tile::backward(&shapes, adapter)];
                    for (tile, length) in tiles.into_iter().zip([pieces, shapes.recurrent * pieces]) {
                        let round = tile.parts * tile.pieces;
                        let covered = tile.rounds * round >= length && (tile.rounds - 1) * round < length;
                        assert!(if adapter.cpu { tile.rounds == 0 } else { covered }, "{tile:?}");
                        assert!(
                            tile.workgroup_bytes() <= adapter.workgroup_bytes && tile.loads() * 16 == round,
                            "{tile:?}"
                        );
                        assert_eq!(tile.together, (adapter.subgroup / 4).clamp(1, tile.parts));
                        assert!(tile.sums() * tile.adders() <= 256, "{tile:?}");
                        assert!(tile.kept().is_multiple_of(tile.adders()), "{tile:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn subgroups_of_one_size() {
        assert_eq!([8, 16, 32, 64, 128].map(|size| subgroup(true, size, size)), [8, 16, 32, 64, 128]);
        assert_eq!([4, 24, 256].map(|size| subgroup(true, size, size)), [1; 3]);
        assert_eq!([subgroup(true, 32, 64), subgroup(false, 32, 32), subgroup(false, 0, 0)], [1; 3]);
        let cpu = Adapter { cpu: true, ..H200 };
        assert_eq!(
            [H200, LEAST, cpu].map(|adapter| Choice::default().adapter(adapter).subgroups()),
            [true, false, false]
        );
        assert!(Choice { as_on_gpus: true, ..Choice::default() }.adapter(cpu).subgroups());
    }

    #[test]
    fn matrices_where_there_are_some() {
        let adapter = Adapter { matrix: true, ..H200 };
        let width = |head_dim, element| matrix_width(head_dim, element, adapter);
        assert_eq!([64, 128, 192, 256].map(|d| width(d, Dtype::F16)), [64, 128, 64, 128].map(Some));
        assert_eq!([1, 32, 96, 100].map(|d| width(d, Dtype::F16)), [None; 4]);
        assert_eq!([Dtype::F32, Dtype::Bf16].map(|element| width(64, element)), [None; 2]);
        assert_eq!(matrix_width(64, Dtype::F16, H200), None);
        assert_eq!(matrix_width(128, Dtype::F16, Adapter { workgroup_bytes: 16 << 10, ..adapter }), Some(64));
    }

    #[test]
    fn products_fit_workgroup_memory() {
        assert_eq!(chunk(4, 16384), Some(32));
        assert_eq!(chunk(8, 16384), Some(16));
        assert_eq!(chunk(1000, 16384), None);
        for recurrent in 1..32 {
            let chunk = chunk(recurrent, 16384).unwrap();
            assert!((recurrent + 1) * 16 * (chunk + 1) * 4 <= 16384);
        }
    }

    #[test]
    fn parts_cover_all_tokens() {
        for tokens in [0, 1, 255, 256, 257, 100_000, 10_000_000] {
            for columns in [1, 1 << 16, 1 << 26] {
                for round in GRADIENT_ROUNDS {
                    let (parts, length) = parts(tokens, columns, round);
                    assert!(parts * length >= tokens && (parts == 0 || (parts - 1) * length < tokens));
                    assert!(length <= LONGEST_LOOP * round[0]);
                }
            }
        }
    }

    #[test]
    fn gates_of_few_steps_at_a_time() {
        assert_eq!(gates_steps(0, 4), 1);
        assert_eq!(gates_steps(100, 4), 100);
        assert_eq!(gates_steps(100, 1 << 20), 16);
        assert_eq!(gates_steps(100, 1 << 30), 1);
        let ranges = |time, steps| from_the_last(time, steps).map(|r| (r.start, r.end)).collect::<Vec<_>>();
        assert_eq!(ranges(7, 3), [(6, 7), (3, 6), (0, 3)]);
        assert_eq!(ranges(6, 3), [(3, 6), (0, 3)]);
        assert_eq!(ranges(2, 3), [(0, 2)]);
        assert_eq!(ranges(0, 3), [(0, 0)]);
    }

    #[test]
    fn dispatches_cover_all_groups() {
        for groups in [0, 1, 65535, 65536, 1_000_000] {
            let [x, y, z] = dispatch(groups);
            assert!(x as usize * y as usize * z as usize >= groups && x <= 65535 && y <= 65535);
        }
    }
}
