//! Times the first call of a problem on a GPU, in a process that has already run another problem
//! with entirely different kernels: once when kernels must be compiled (cold), and once when they
//! are loaded from the disk cache (warm).

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use flashrnn::cuda::cache;
use flashrnn::{Backend, Cell, Cuda, Element, Forward, Plan, Problem};
use serde::Serialize;

use super::measure::milliseconds;
use super::workloads::{HEAD, Workload};
use crate::choice::{CellName, DtypeName, with_cell, with_dtype};

/// The JSON object of one measurement. Times are in milliseconds.
#[derive(Serialize)]
#[allow(non_snake_case)] // the keys are the names of the sizes in the equations
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
    /// The time until the plan was made.
    plan_ms: f64,
    /// The time until the forward pass had ended.
    ms: f64,
}

/// Times the first call of each workload, first with an empty disk cache and then with its kernels
/// in the cache.
pub fn main(workloads: &[Workload], json: bool, out: &mut impl Write) -> Result<()> {
    let device = Cuda::new()?.info().device;
    if !json {
        writeln!(out, "cuda ({device}), milliseconds since `plan` was called")?;
        writeln!(out, "{HEAD}  {:<6} {:>9} {:>12}", "cache", "plan made", "forward done")?;
    }
    for work in workloads {
        for cache in ["cold", "warm"] {
            if cache == "cold" {
                cache::clear().context("can't clear the kernel cache")?;
            }
            // Uses a new backend for each measurement, since a backend caches kernels in memory.
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

/// Returns a small problem that shares no kernel with `work`, since its cell and element type
/// differ.
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

/// Runs `plan`, `pack` and inference on existing buffers. Returns the times until the plan was made
/// and until the end.
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
