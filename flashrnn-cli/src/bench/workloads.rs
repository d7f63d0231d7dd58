//! The problems that are timed if no size is given.

use std::fmt;

use clap::ValueEnum;
use flashrnn::Problem;

use crate::choice::{CellName, DtypeName};

/// A problem to time.
#[derive(Clone, Copy)]
pub struct Workload {
    pub cell: CellName,
    pub dtype: DtypeName,
    pub batch: usize,
    pub time: usize,
    pub heads: usize,
    pub head_dim: usize,
}

impl Workload {
    /// Returns the problem with every option off.
    pub fn problem(&self) -> Problem {
        Problem::new(self.batch, self.time, self.heads, self.head_dim)
    }
}

/// The header of the columns that [`Workload`] displays.
pub const HEAD: &str = "cell   dtype    B     T   N     D";

/// Formats the workload as columns of a table.
impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cell, dtype, batch, time, heads, head_dim } = self;
        write!(f, "{cell:<6} {dtype:<5} {batch:>4} {time:>5} {heads:>3} {head_dim:>5}")
    }
}

/// A list of problems.
#[derive(Clone, Copy, ValueEnum)]
pub enum List {
    /// For CPUs: single rows (streaming), small and large batches, one and many heads, in f32.
    Cpu,
    /// For GPUs: 1024 steps, mostly in bf16.
    Gpu,
}

impl List {
    /// Returns the problems of the list.
    pub fn workloads(self) -> &'static [Workload] {
        match self {
            Self::Cpu => &CPU,
            Self::Gpu => &GPU,
        }
    }
}

use CellName::{Elman, Gru, Lstm, Slstm};
use DtypeName::{Bf16, F32};

const CPU: [Workload; 14] = [
    workload(Lstm, F32, [1, 256, 1, 128]),
    workload(Lstm, F32, [1, 256, 1, 512]),
    workload(Lstm, F32, [1, 256, 1, 1024]),
    workload(Lstm, F32, [16, 256, 1, 128]),
    workload(Lstm, F32, [16, 256, 1, 512]),
    workload(Lstm, F32, [64, 256, 1, 512]),
    workload(Gru, F32, [1, 256, 1, 128]),
    workload(Gru, F32, [1, 256, 1, 512]),
    workload(Gru, F32, [16, 256, 1, 512]),
    workload(Elman, F32, [1, 256, 1, 512]),
    workload(Elman, F32, [16, 256, 1, 512]),
    workload(Slstm, F32, [16, 256, 4, 64]),
    workload(Lstm, F32, [16, 256, 12, 64]),
    workload(Slstm, F32, [16, 256, 3, 256]),
];

const GPU: [Workload; 17] = [
    workload(Lstm, Bf16, [16, 1024, 12, 64]),
    workload(Lstm, Bf16, [16, 1024, 6, 128]),
    workload(Lstm, Bf16, [16, 1024, 3, 256]),
    workload(Lstm, Bf16, [16, 1024, 1, 768]),
    workload(Slstm, Bf16, [16, 1024, 12, 64]),
    workload(Slstm, Bf16, [16, 1024, 3, 256]),
    workload(Slstm, Bf16, [16, 1024, 1, 768]),
    workload(Gru, Bf16, [16, 1024, 3, 256]),
    workload(Gru, Bf16, [16, 1024, 1, 768]),
    workload(Elman, Bf16, [16, 1024, 1, 768]),
    workload(Lstm, Bf16, [1, 1024, 12, 64]),
    workload(Lstm, Bf16, [1, 1024, 1, 768]),
    workload(Lstm, Bf16, [64, 1024, 12, 64]),
    workload(Lstm, Bf16, [256, 1024, 12, 64]),
    workload(Lstm, Bf16, [256, 1024, 1, 768]),
    workload(Lstm, F32, [16, 1024, 12, 64]),
    workload(Lstm, F32, [16, 1024, 1, 768]),
];

const fn workload(
    cell: CellName,
    dtype: DtypeName,
    [batch, time, heads, head_dim]: [usize; 4],
) -> Workload {
    Workload { cell, dtype, batch, time, heads, head_dim }
}
