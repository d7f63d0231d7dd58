//! Which kernels run a problem, and sizes of tiles, parts and dispatches: pure functions.

use std::ops::Range;

use flashrnn_core::Shapes;

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

/// The pieces, of 4 numbers, of the packed weights.
pub fn packed(shapes: &Shapes) -> usize {
    let lines = shapes.recurrent * shapes.heads * shapes.head_dim;
    2 * lines * shapes.head_dim.div_ceil(4) + (shapes.gates * shapes.heads * shapes.head_dim).div_ceil(4)
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
    /// How often workgroup memory is filled.
    pub rounds: usize,
    /// Lines whose sums are added up at a time.
    pub at_once: usize,
}

/// Registers of a thread that hold weights: of this round, and of the next if there is one.
const WEIGHTS: usize = 128;

impl Tile {
    /// Of the forward pass: a thread has the recurrent gates of a unit.
    pub fn forward(shapes: &Shapes, workgroup_bytes: usize) -> Self {
        Self::new(shapes.recurrent, 8, shapes.head_dim.div_ceil(4), workgroup_bytes)
    }

    /// Of the backward pass: a thread has 4 units.
    pub fn backward(shapes: &Shapes, workgroup_bytes: usize) -> Self {
        Self::new(4, 32, shapes.recurrent * shapes.head_dim.div_ceil(4), workgroup_bytes)
    }

    fn new(lines: usize, parts: usize, length: usize, workgroup_bytes: usize) -> Self {
        // Whole loads of 256 threads: 16 rows of at least 16 pieces.
        let least = 16usize.div_ceil(parts);
        let with = |pieces: usize| {
            let rounds = length.div_ceil(parts * pieces);
            Self { lines, parts, pieces, rounds, at_once: 1 }
        };
        let fits = |tile: &Self| {
            let registers = 4 * tile.lines * tile.pieces * tile.rounds.min(2);
            registers <= WEIGHTS && tile.workgroup_bytes() <= workgroup_bytes
        };
        // No more than one round needs.
        let most = length.div_ceil(parts).next_power_of_two();
        let tile =
            [8, 4, 2, 1].into_iter().filter(|&pieces| least <= pieces && pieces <= most).map(with).find(fits);
        let tile = tile.unwrap_or(with(least));
        let at_once = (1..=lines).rev().map(|at_once| Self { at_once, ..tile });
        at_once.into_iter().find(|tile| tile.workgroup_bytes() <= workgroup_bytes).unwrap_or(tile)
    }

    /// Pieces of the rows that a thread brings to workgroup memory in a round.
    pub fn loads(self) -> usize {
        16 * self.parts * self.pieces / 256
    }

    /// Threads that share the adding of a sum's parts.
    pub fn adders(self) -> usize {
        let sums = 256 / self.parts * self.at_once;
        1 << (256 / sums).clamp(1, self.parts).ilog2()
    }

    /// Bytes of workgroup memory.
    pub fn workgroup_bytes(self) -> usize {
        16 * (16 * (self.parts * self.pieces + 2)).max(256 * self.at_once)
    }
}

/// The elements that partial sums take, unless one part takes more.
const MOST_PARTIAL: usize = 1 << 24;

/// A sum over tokens in parts: how many, and the tokens of each. `columns` is what one part takes, in elements, and `round` the
/// tokens that one round of the kernel's loop adds.
pub fn parts(tokens: usize, columns: usize, round: usize) -> (usize, usize) {
    let most = (MOST_PARTIAL / columns.max(1)).clamp(1, 64);
    let length = tokens.div_ceil(most).clamp(256, LONGEST_LOOP * round);
    (tokens.div_ceil(length), length)
}

/// The tokens of a round of `weight_gradient` and of `bias_gradient`.
pub const GRADIENT_ROUNDS: [usize; 2] = [16, 1];

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
}

impl Choice {
    /// The fused kernels for a problem, or `None` for the alternating ones.
    pub fn fused(self, shapes: &Shapes, adapter: Adapter) -> Option<Fused> {
        match self.family {
            Family::Alternating => None,
            Family::Auto | Family::Fused => self
                .fused
                .filter(|fused| fused.units >= shapes.head_dim)
                .or_else(|| Fused::new(shapes, adapter)),
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
}

/// Registers of a multiprocessor, and the most of one thread. No interface tells them; these are NVIDIA's. Where there are fewer, R
/// is spilled: slow, but right.
const REGISTERS: (usize, usize) = (65536, 255);

/// Registers of a thread beside its weights and sums: states, gates, what it carries, and where.
const OTHER_REGISTERS: usize = 64;

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

    /// Workgroups of a dispatch.
    pub fn groups(self, shapes: &Shapes) -> usize {
        shapes.heads * shapes.batch.div_ceil(self.rows)
    }

    /// Bytes of workgroup memory of the forward and of the backward kernel.
    pub fn workgroup_bytes(self, shapes: &Shapes) -> [usize; 2] {
        let Shapes { recurrent, external, states, gates, .. } = *shapes;
        let forward = 1 + self.split * recurrent + external.max(1) + states + gates;
        let backward = gates + self.split * recurrent + gates + 2 * states;
        // BETWEEN of shaders/fused.wgsl.
        let between = [4 * self.split, 4 * self.split * gates];
        [0, 1].map(|pass| {
            ([forward, backward][pass] * self.units * self.rows + between[pass]) * size_of::<f32>()
        })
    }

    fn fits(self, shapes: &Shapes, adapter: Adapter) -> bool {
        let tile = self.tile(shapes);
        let registers = tile * (self.depth() + self.rows) + OTHER_REGISTERS;
        self.threads() <= adapter.invocations
            && self.rows <= self.split
            && tile <= self.units
            && registers <= (REGISTERS.0 / self.threads()).min(REGISTERS.1)
            && self.workgroup_bytes(shapes).into_iter().all(|bytes| bytes <= adapter.workgroup_bytes)
    }

    /// The fused kernels for a problem, the same for any T; `None` where R does not fit a workgroup's registers, or a step its
    /// memory.
    pub fn new(shapes: &Shapes, adapter: Adapter) -> Option<Self> {
        let units = [8, 16, 32, 64, 96, 128].into_iter().find(|&units| units >= shapes.head_dim)?;
        let groups = |rows| shapes.heads * shapes.batch.div_ceil(rows);
        let mut wanted = [4, 2].into_iter().find(|&rows| groups(rows) >= ENOUGH_GROUPS).unwrap_or(1);
        // A CPU has no registers for R, and its drivers take seconds to compile what is written out: there the smallest heads
        // alone are fused, all in one way.
        if adapter.cpu {
            if units > 8 {
                return None;
            }
            wanted = 1;
        }
        let rows = [4, 2, 1].into_iter().filter(|&rows| rows <= wanted);
        rows.flat_map(|rows| [4, 2].map(|split| Self { units, split, rows }))
            .find(|fused| fused.fits(shapes, adapter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashrnn_core::{Elman, Gru, Lstm, Problem, Slstm};

    const H200: Adapter = Adapter { cpu: false, invocations: 1024, workgroup_bytes: 48 << 10 };
    /// What every device has.
    const LEAST: Adapter = Adapter { cpu: false, invocations: 256, workgroup_bytes: 16 << 10 };

    #[test]
    fn fused_where_a_head_fits_a_workgroup() {
        let lstm = |batch, heads, head_dim| Problem::new(batch, 1, heads, head_dim).shapes::<Lstm>().unwrap();
        let fused = |shapes, adapter| Fused::new(&shapes, adapter);
        let of = |units, split, rows| Some(Fused { units, split, rows });
        assert_eq!(fused(lstm(16, 12, 64), H200), of(64, 4, 2));
        assert_eq!(fused(lstm(16, 12, 64), LEAST), of(64, 4, 2));
        assert_eq!(fused(lstm(1, 1, 64), H200), of(64, 4, 1));
        assert_eq!(fused(lstm(256, 12, 64), H200), of(64, 4, 4));
        assert_eq!(fused(lstm(256, 12, 64), LEAST), of(64, 4, 2));
        assert_eq!(fused(lstm(16, 12, 33), H200), of(64, 4, 2));
        assert_eq!(fused(lstm(16, 8, 96), H200), of(96, 4, 2));
        assert_eq!(fused(lstm(16, 8, 96), LEAST), None);
        assert_eq!(fused(lstm(16, 6, 128), H200), None);
        assert_eq!(fused(lstm(16, 1, 256), H200), None);
        let elman = Problem::new(1, 1, 1, 128).shapes::<Elman>().unwrap();
        assert_eq!(fused(elman.clone(), H200), of(128, 4, 1));
        assert_eq!(fused(elman, LEAST), of(128, 2, 1));
        let gru = Problem::new(16, 1, 12, 1).shapes::<Gru>().unwrap();
        assert_eq!(fused(gru, LEAST), of(8, 4, 2));
        let cpu = Adapter { cpu: true, ..H200 };
        assert_eq!(fused(lstm(16, 12, 8), cpu), of(8, 4, 1));
        assert_eq!(fused(lstm(16, 12, 9), cpu), None);
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
                        let Some(fused) = Fused::new(&shapes, adapter) else { continue };
                        assert!(fused.units >= head_dim && fused.threads() <= adapter.invocations);
                        assert!(
                            fused
                                .workgroup_bytes(&shapes)
                                .iter()
                                .all(|&bytes| bytes <= adapter.workgroup_bytes)
                        );
                        // Whole pairs in a part, and a turn or more.
                        assert!(
                            fused.depth().is_multiple_of(2) && fused.turns() * fused.rows == 2 * fused.split
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn tiles_cover_k_and_fit_workgroup_memory() {
        let tile = |lines, parts, pieces, rounds, at_once| Tile { lines, parts, pieces, rounds, at_once };
        let lstm = Problem::new(16, 1, 3, 256).shapes::<Lstm>().unwrap();
        assert_eq!(Tile::forward(&lstm, 48 << 10), tile(4, 8, 8, 1, 4));
        assert_eq!(Tile::forward(&lstm, 16 << 10), tile(4, 8, 4, 2, 4));
        assert_eq!(Tile::backward(&lstm, 48 << 10), tile(4, 32, 4, 2, 4));
        for head_dim in 1..=600 {
            for bytes in [16 << 10, 48 << 10] {
                let problem = Problem::new(16, 1, 3, head_dim);
                for shapes in [problem.shapes::<Elman>(), problem.shapes::<Gru>(), problem.shapes::<Lstm>()] {
                    let shapes = shapes.unwrap();
                    let pieces = head_dim.div_ceil(4);
                    let tiles = [Tile::forward(&shapes, bytes), Tile::backward(&shapes, bytes)];
                    for (tile, length) in tiles.into_iter().zip([pieces, shapes.recurrent * pieces]) {
                        let round = tile.parts * tile.pieces;
                        assert!(
                            tile.rounds * round >= length && (tile.rounds - 1) * round < length,
                            "{tile:?}"
                        );
                        assert!(tile.workgroup_bytes() <= bytes && tile.loads() * 16 == round, "{tile:?}");
                        let sums = 256 / tile.parts * tile.at_once;
                        assert!(sums * tile.adders() <= 256 && tile.parts.is_multiple_of(tile.adders()));
                    }
                }
            }
        }
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
                    assert!(length <= LONGEST_LOOP * round);
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
