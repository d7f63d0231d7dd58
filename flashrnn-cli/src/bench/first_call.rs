//! How long the first call of a problem takes on a GPU, in a process that has run another problem,
//! whose kernels share nothing with this one's: once compiled (cold), once from the kernels kept on
//! disk (warm).

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use flashrnn::cuda::cache;
use flashrnn::{Backend, Cell, Cuda, Element, Forward, Plan, Problem};
use serde::Serialize;

use super::workloads::Workload;
use super::{HEAD, milliseconds};
use crate::choice::{CellName, DtypeName, with_cell, with_dtype};

/// One measurement; times in milliseconds.
#[derive(Serialize)]
#[allow(non_snake_case)] // the sizes' names in the equations are the keys of the JSON
struct Row<'a> {
    peer: &'static str,
    device: &'a str,
    cell: String,
    dtype: &'static str,
    B: usize,
    T: usize,
    N: usize,
    D: usize,
    pass: &'static str,
    /// `cold` or `warm`.
    cache: &'static str,
    /// Until the plan was made.
    plan_ms: f64,
    /// Until the forward pass had ended.
    ms: f64,
}

/// Times the first call of each workload, after deleting the kernels kept on disk and then with
/// them.
pub fn main(workloads: &[Workload], json: bool, out: &mut impl Write) -> Result<()> {
    let device = Cuda::new()?.info().device;
    if !json {
        writeln!(out, "cuda ({device}); milliseconds from `plan` on")?;
        writeln!(out, "{HEAD}  {:<6} {:>9} {:>12}", "cache", "plan made", "forward done")?;
    }
    for work in workloads {
        for cache in ["cold", "warm"] {
            if cache == "cold" {
                cache::clear().context("can't clear the kernel cache")?;
            }
            // One of its own for each: kernels are also kept in memory.
            let cuda = Cuda::new()?;
            call(&cuda, &other(work))?;
            let [plan_ms, ms] = call(&cuda, work)?.map(milliseconds);
            let line = if json {
                serde_json::to_string(&Row {
                    peer: "flashrnn-rs.cuda",
                    device: &device,
                    cell: work.cell.to_string(),
                    dtype: work.dtype.long(),
                    B: work.batch,
                    T: work.time,
                    N: work.heads,
                    D: work.head_dim,
                    pass: "first",
                    cache,
                    plan_ms,
                    ms,
                })?
            } else {
                format!("{work}  {cache:<6} {plan_ms:>9.3} {ms:>12.3}")
            };
            writeln!(out, "{line}")?;
            out.flush()?;
        }
    }
    Ok(())
}

/// A small problem that shares no kernel with `work`: of another cell and element type.
fn other(work: &Workload) -> Workload {
    let cell = if work.cell == CellName::Elman { CellName::Gru } else { CellName::Elman };
    let dtype = if work.dtype == DtypeName::F16 { DtypeName::Bf16 } else { DtypeName::F16 };
    Workload { cell, dtype, batch: 3, time: 5, heads: 2, head_dim: 48 }
}

fn call(cuda: &Cuda, work: &Workload) -> Result<[Duration; 2]> {
    with_cell!(work.cell, |cell| with_dtype!(work.dtype, |T| first::<T, _>(
        cuda,
        &cell,
        &work.problem()
    )))
}

/// Runs `plan`, `pack` and inference from buffers that are there already. How long it took until
/// the plan was made, and until the end.
fn first<T: Element, C: Cell>(cuda: &Cuda, cell: &C, problem: &Problem) -> Result<[Duration; 2]> {
    let shapes = problem.shapes::<C>()?;
    let size = |shape: &[usize]| shape.iter().product::<usize>();
    let wx = cuda.alloc::<T>(size(&shapes.wx()))?;
    let r = cuda.alloc::<T>(size(&shapes.r()))?;
    let b = cuda.alloc::<T>(size(&shapes.b()))?;
    let mut h = cuda.alloc::<T>(size(&shapes.h()))?;
    let mut last = cuda.alloc::<T::Wide>(size(&shapes.state()))?;
    cuda.synchronize()?;
    let before = Instant::now();
    let plan = cuda.plan::<T, T, C>(cell, problem)?;
    let planned = before.elapsed();
    let weights = plan.pack(r.view(), b.view())?;
    plan.forward(Forward {
        h: Some(h.view_mut()),
        last: Some(last.view_mut()),
        ..Forward::new(&weights, wx.view())
    })?;
    cuda.synchronize()?;
    Ok([planned, before.elapsed()])
}
