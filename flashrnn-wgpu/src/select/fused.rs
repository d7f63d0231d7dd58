//! The fused kernels.

use flashrnn_core::{Dtype, Shapes};

use super::Adapter;

/// Maximum number of time steps in one dispatch of a fused kernel. That many steps take a few
/// milliseconds on a GPU, so no watchdog ends the dispatch, and no loop is longer than
/// [`MAX_LOOP`](super::MAX_LOOP).
pub const FUSED_STEPS: usize = 2048;

/// The shape of a fused kernel's workgroup, which computes one head of some rows of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fused {
    /// Units of the head: D padded with zeros.
    pub units: usize,
    /// Parts along k. A workgroup has `units * split` threads.
    pub split: usize,
    /// Rows of the batch.
    pub rows: usize,
    /// Registers of a thread for its weights and sums. Weights that do not fit are re-read at every
    /// step.
    pub registers: usize,
}

/// The part of R that a thread of a fused kernel multiplies: lines along k, in chunks. The names
/// are those of shaders/fused/roles.wgsl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lines {
    /// Lines: the gates of a unit in the forward pass, some units in the backward pass.
    pub lines: usize,
    /// Number of threads that multiply lines.
    pub threads: usize,
    /// Pieces of each line in a chunk.
    pub groups: usize,
    /// Number of chunks.
    pub chunks: usize,
    /// Chunks that stay in registers; the others are re-read at every step.
    pub resident: usize,
    /// Whether 16-bit weights are f32 in registers.
    pub wide: bool,
}

/// Returns the number of weights along k in a piece of 4 words.
pub fn piece(narrow: bool) -> usize {
    if narrow { 8 } else { 4 }
}

/// The number of registers of a multiprocessor. wgpu does not report it; this is the number of
/// NVIDIA's GPUs. On a device with fewer, R is spilled, which is slow but correct.
const REGISTERS: usize = 65536;

/// Maximum number of registers of a thread. A quarter is reserved for values other than weights and
/// sums.
const MAX_THREAD_REGISTERS: usize = 255;

/// Maximum number of a thread's pieces in a chunk that has several of each line. The pieces of a
/// chunk are read together if they are not resident.
const MAX_CHUNK_PIECES: usize = 8;

/// Maximum size in bytes of a head's R that is re-read at every step. For larger heads, one
/// dispatch per step is faster.
const MAX_STREAMED_BYTES: usize = 5 << 18;

/// Maximum number of threads of a workgroup that re-reads R, in f32 and in 16 bits. More threads
/// would have no registers for loads in flight.
const MAX_STREAMING_THREADS: [usize; 2] = [256, 512];

/// Number of workgroups that keep a GPU busy. If there are fewer, a workgroup gets fewer rows.
const MIN_GROUPS: usize = 64;

impl Fused {
    /// Returns the number of threads of a workgroup.
    pub fn threads(self) -> usize {
        self.units * self.split
    }

    /// Returns the number of elements along k in a part.
    pub fn depth(self) -> usize {
        self.units / self.split
    }

    /// Returns the number of tensors that a workgroup loads or stores at a time. A thread moves two
    /// units of a row.
    pub fn io_tensors(self) -> usize {
        2 * self.split / self.rows
    }

    /// Returns the number of units per thread in the backward product, chosen so that all threads
    /// hold weights if `Gr` is a power of 2, and more than half of them otherwise.
    pub fn tile(self, shapes: &Shapes) -> usize {
        shapes.recurrent.next_power_of_two()
    }

    /// Returns the number of buffers for a step's operands in the forward kernel: 2 if a thread
    /// computes whole sums, because then no barrier separates a step's reads from its writes.
    pub fn buffers(self) -> usize {
        if self.split == 1 { 2 } else { 1 }
    }

    /// Returns the number of pieces of a head's R. A piece has `piece` weights.
    pub fn pieces(self, shapes: &Shapes, piece: usize) -> usize {
        self.units / piece * shapes.recurrent * self.units
    }

    /// Returns the lines of the forward kernel.
    pub fn forward(self, shapes: &Shapes, narrow: bool) -> Lines {
        self.lines(shapes.recurrent, self.threads(), narrow)
    }

    /// Returns the lines of the backward kernel.
    pub fn backward(self, shapes: &Shapes, narrow: bool) -> Lines {
        let tile = self.tile(shapes);
        self.lines(tile, shapes.recurrent * self.threads() / tile, narrow)
    }

    fn lines(self, lines: usize, threads: usize, narrow: bool) -> Lines {
        let pieces = self.depth() / piece(narrow);
        let groups = (1..=pieces)
            .rev()
            .find(|groups| {
                pieces.is_multiple_of(*groups)
                    && (groups * lines <= MAX_CHUNK_PIECES || *groups == 1)
            })
            .unwrap_or(1);
        let chunks = pieces / groups;
        let room = self.registers.saturating_sub(lines * self.rows);
        let chunk = 4 * groups * lines;
        let (resident, wide) = if narrow && 2 * chunk * chunks <= room {
            (chunks, true)
        } else if chunk * chunks <= room {
            (chunks, false)
        } else {
            // Half a chunk is in flight.
            (room.saturating_sub(chunk / 2) / chunk, false)
        };
        Lines { lines, threads, groups, chunks, resident, wide }
    }

    /// Returns the number of workgroups of a dispatch.
    pub fn groups(self, shapes: &Shapes) -> usize {
        shapes.heads * shapes.batch.div_ceil(self.rows)
    }

    /// Returns the workgroup memory of the forward and of the backward kernel, in bytes.
    pub fn workgroup_bytes(self, shapes: &Shapes, narrow: bool) -> [usize; 2] {
        let Shapes { recurrent, external, states, gates, .. } = *shapes;
        let shared = if self.split > 1 { self.split * recurrent } else { 0 };
        let forward = shared + self.buffers() * (external.max(1) + states + gates);
        let backward = self.split * recurrent + gates + 2 * states;
        // CHUNK_PAD of shaders/fused/roles.wgsl, for each chunk.
        let x = |parts, lines: Lines| parts * self.split * (self.depth() + 4 * lines.chunks);
        let x = [
            x(self.buffers(), self.forward(shapes, narrow)),
            x(gates, self.backward(shapes, narrow)),
        ];
        [0, 1].map(|pass| {
            ([forward, backward][pass] * self.units + x[pass]) * self.rows * size_of::<f32>()
        })
    }

    fn fits(self, shapes: &Shapes, adapter: Adapter, narrow: bool) -> bool {
        self.threads() <= adapter.invocations
            && self.rows <= self.split
            && self.depth().is_multiple_of(8)
            && self.tile(shapes) <= self.units
            && self
                .workgroup_bytes(shapes, narrow)
                .into_iter()
                .all(|bytes| bytes <= adapter.workgroup_bytes)
    }

    /// Returns whether all weights stay in registers.
    fn keeps_all(self, shapes: &Shapes, narrow: bool) -> bool {
        [self.forward(shapes, narrow), self.backward(shapes, narrow)]
            .iter()
            .all(|lines| lines.resident == lines.chunks)
    }

    /// Chooses the fused kernels for a problem with any number of time steps. Returns `None` if a
    /// step does not fit workgroup memory, or R is too large to be re-read at every step. `element`
    /// is T.
    pub fn new(shapes: &Shapes, adapter: Adapter, element: Dtype) -> Option<Self> {
        let narrow = element != Dtype::F32;
        let units = [8, 16, 32, 64, 96, 128, 192, 256, 384, 512]
            .into_iter()
            .find(|&units| units >= shapes.head_dim)?;
        // A CPU has no registers for R, and its drivers take seconds to compile unrolled loops.
        // Only the smallest heads are fused there, in f32, with one row per workgroup.
        if adapter.cpu && (units > 8 || narrow) {
            return None;
        }
        let cut = |rows, split: usize| {
            let threads = units * split;
            let registers = (REGISTERS / threads).min(MAX_THREAD_REGISTERS) / 4 * 3;
            Self { units, split, rows, registers }
        };
        let fits = |fused: &Self| fused.fits(shapes, adapter, narrow);
        let keeps_all = |fused: &Self| fits(fused) && fused.keeps_all(shapes, narrow);
        let bytes = shapes.recurrent * units * units * if narrow { 2 } else { 4 };
        let max_threads = MAX_STREAMING_THREADS[usize::from(narrow)];
        let streams = |fused: &Self| {
            fits(fused) && bytes <= MAX_STREAMED_BYTES && fused.threads() <= max_threads
        };
        // A single row needs the least memory, so it determines the parts along k, and with them
        // the order of the packed weights, which must be the same for every batch.
        let split =
            |may: &dyn Fn(&Self) -> bool| [4, 2, 1].into_iter().find(|&split| may(&cut(1, split)));
        let (split, may): (_, &dyn Fn(&Self) -> bool) = match split(&keeps_all) {
            Some(split) => (split, &keeps_all),
            None => (split(&streams)?, &streams),
        };
        let enough = |rows| shapes.heads * shapes.batch.div_ceil(rows) >= MIN_GROUPS;
        let several = [4, 2].into_iter().filter(|&rows| !adapter.cpu && enough(rows));
        several.map(|rows| cut(rows, split)).find(may).or(Some(cut(1, split)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::select::examples::{H200, MINIMAL};
    use flashrnn_core::{Elman, Gru, Lstm, Problem, Slstm};

    #[test]
    fn fused_where_a_head_fits_a_workgroup() {
        let lstm = |batch, heads, head_dim| {
            Problem::new(batch, 1, heads, head_dim).shapes::<Lstm>().unwrap()
        };
        let fused = |shapes: Shapes, adapter, narrow| {
            let element = if narrow { Dtype::Bf16 } else { Dtype::F32 };
            let fused = Fused::new(&shapes, adapter, element)?;
            let kept =
                [fused.forward(&shapes, narrow), fused.backward(&shapes, narrow)].map(|lines| {
                    format!(
                        "{}{}/{}",
                        if lines.wide { "wide " } else { "" },
                        lines.resident,
                        lines.chunks
                    )
                });
            Some((fused.units, fused.split, fused.rows, kept))
        };
        let of = |units, split, rows, kept: [&str; 2]| {
            Some((units, split, rows, kept.map(String::from)))
        };
        assert_eq!(fused(lstm(16, 12, 64), H200, false), of(64, 4, 2, ["2/2", "2/2"]));
        assert_eq!(fused(lstm(16, 12, 64), H200, true), of(64, 4, 2, ["wide 1/1", "wide 1/1"]));
        assert_eq!(fused(lstm(16, 12, 64), MINIMAL, false), of(64, 4, 2, ["2/2", "2/2"]));
        assert_eq!(fused(lstm(1, 1, 64), H200, false), of(64, 4, 1, ["2/2", "2/2"]));
        assert_eq!(fused(lstm(256, 12, 64), H200, false), of(64, 4, 4, ["2/2", "2/2"]));
        assert_eq!(fused(lstm(256, 12, 64), MINIMAL, false), of(64, 4, 2, ["2/2", "2/2"]));
        assert_eq!(fused(lstm(16, 12, 33), H200, false), of(64, 4, 2, ["2/2", "2/2"]));
        assert_eq!(fused(lstm(16, 6, 128), H200, true), of(128, 4, 1, ["2/2", "2/2"]));
        assert_eq!(fused(lstm(16, 6, 128), MINIMAL, true), of(128, 2, 1, ["4/4", "4/4"]));
        assert_eq!(fused(lstm(16, 3, 256), H200, true), of(256, 2, 1, ["2/8", "2/8"]));
        assert_eq!(fused(lstm(16, 3, 256), H200, false), of(256, 1, 1, ["5/32", "5/32"]));
        assert_eq!(fused(lstm(16, 3, 256), MINIMAL, true), None);
        assert_eq!(fused(lstm(16, 3, 384), H200, true), of(384, 1, 1, ["3/24", "3/24"]));
        assert_eq!(fused(lstm(16, 3, 384), H200, false), None);
        assert_eq!(fused(lstm(16, 2, 512), H200, true), None);
        let elman = Problem::new(1, 1, 1, 128).shapes::<Elman>().unwrap();
        assert_eq!(fused(elman.clone(), H200, false), of(128, 4, 1, ["1/1", "1/1"]));
        assert_eq!(fused(elman, MINIMAL, false), of(128, 2, 1, ["2/2", "2/2"]));
        let gru = Problem::new(16, 1, 12, 1).shapes::<Gru>().unwrap();
        assert_eq!(fused(gru, MINIMAL, false), of(8, 1, 1, ["1/1", "1/1"]));
        let cpu = Adapter { cpu: true, ..H200 };
        assert_eq!(fused(lstm(16, 12, 8), cpu, false), of(8, 1, 1, ["1/1", "1/1"]));
        assert_eq!(fused(lstm(16, 12, 9), cpu, false), None);
    }

    /// The order of the packed weights depends on units and split, so that one packing serves every
    /// batch.
    #[test]
    fn no_batch_changes_the_order_of_the_weights() {
        let cpu = Adapter { cpu: true, ..H200 };
        for adapter in [H200, MINIMAL, cpu] {
            for head_dim in [1, 8, 16, 33, 64, 96, 128, 192, 256, 384, 512, 513] {
                for element in [Dtype::F32, Dtype::Bf16] {
                    let order = |batch| {
                        let shapes = Problem::new(batch, 1, 3, head_dim).shapes::<Slstm>().unwrap();
                        Fused::new(&shapes, adapter, element)
                            .map(|fused| (fused.units, fused.split))
                    };
                    assert_eq!(
                        [2, 16, 64, 1 << 20].map(order),
                        [order(1); 4],
                        "{head_dim}, {element}"
                    );
                }
            }
        }
    }

    #[test]
    fn fused_kernels_fit_the_adapter() {
        for adapter in [H200, MINIMAL] {
            for (batch, heads) in [(1, 1), (16, 12), (256, 12)] {
                for head_dim in 1..=256 {
                    let problem = Problem::new(batch, 1, heads, head_dim);
                    for shapes in [
                        problem.shapes::<Elman>(),
                        problem.shapes::<Gru>(),
                        problem.shapes::<Slstm>(),
                    ] {
                        let shapes = shapes.unwrap();
                        for element in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
                            let narrow = element != Dtype::F32;
                            let Some(fused) = Fused::new(&shapes, adapter, element) else {
                                continue;
                            };
                            assert!(
                                fused.units >= head_dim && fused.threads() <= adapter.invocations
                            );
                            let bytes = fused.workgroup_bytes(&shapes, narrow);
                            assert!(bytes.iter().all(|&bytes| bytes <= adapter.workgroup_bytes));
                            // At least one tensor at a time; whole chunks of whole pieces.
                            assert!(fused.io_tensors() * fused.rows == 2 * fused.split);
                            for lines in
                                [fused.forward(&shapes, narrow), fused.backward(&shapes, narrow)]
                            {
                                let pieces = fused.depth() / piece(narrow);
                                assert!(
                                    lines.chunks * lines.groups == pieces
                                        && lines.resident <= lines.chunks
                                );
                                let all = pieces * lines.lines * lines.threads;
                                assert_eq!(fused.pieces(&shapes, piece(narrow)), all);
                            }
                        }
                    }
                }
            }
        }
    }
}
