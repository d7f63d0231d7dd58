//! `flashrnn bench`: how long forward and forward+backward take.
//!
//! - forward is inference: h at every step and the last state out, weights packed once before, nothing saved.
//! - forward+backward is a step of training: weights packed, states and gates saved, the gradient of h in, and the
//!   gradients of wx, R, b and the initial state out.
//!
//! Buffers are allocated before, and the backend is synchronised inside the timed region. Two calls warm up, then calls
//! are timed until the time is spent, and at least five.

use std::fmt::Write as _;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use flashrnn::{Backend, Backward, Cell, Cpu, Element, Forward, Plan, Problem};
use indicatif::{ProgressBar, ProgressStyle};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

use crate::choice::{BackendName, CellName, DtypeName, with_cell, with_dtype};

/// The arguments of `flashrnn bench`.
#[derive(clap::Args)]
pub struct Args {
    /// Where to run.
    #[arg(long, default_value_t)]
    backend: BackendName,
    /// The cell [default: every one in the list of workloads; lstm where a size is given].
    #[arg(long)]
    cell: Option<CellName>,
    /// The element type of every tensor.
    #[arg(long, default_value_t)]
    dtype: DtypeName,
    /// The number of sequences [default where another size is given: 16].
    #[arg(long, value_name = "B")]
    batch: Option<usize>,
    /// The number of time steps [default where another size is given: 256].
    #[arg(long, value_name = "T")]
    seq_len: Option<usize>,
    /// The number of heads [default where another size is given: 1].
    #[arg(long, value_name = "N")]
    heads: Option<usize>,
    /// The number of units of a head [default where another size is given: 512].
    #[arg(long, value_name = "D")]
    head_dim: Option<usize>,
    /// The number of threads [default: all cores].
    #[arg(long)]
    threads: Option<usize>,
    /// How long to repeat each measurement, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, allow_negative_numbers = true)]
    budget: f64,
    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
}

/// One problem to time.
#[derive(Clone, Copy)]
struct Workload {
    cell: CellName,
    batch: usize,
    time: usize,
    heads: usize,
    head_dim: usize,
}

/// What runs where no size is given: one row (streaming), small and large batches, one head and many.
const WORKLOADS: [Workload; 14] = [
    workload(CellName::Lstm, [1, 256, 1, 128]),
    workload(CellName::Lstm, [1, 256, 1, 512]),
    workload(CellName::Lstm, [1, 256, 1, 1024]),
    workload(CellName::Lstm, [16, 256, 1, 128]),
    workload(CellName::Lstm, [16, 256, 1, 512]),
    workload(CellName::Lstm, [64, 256, 1, 512]),
    workload(CellName::Gru, [1, 256, 1, 128]),
    workload(CellName::Gru, [1, 256, 1, 512]),
    workload(CellName::Gru, [16, 256, 1, 512]),
    workload(CellName::Elman, [1, 256, 1, 512]),
    workload(CellName::Elman, [16, 256, 1, 512]),
    workload(CellName::Slstm, [16, 256, 4, 64]),
    workload(CellName::Lstm, [16, 256, 12, 64]),
    workload(CellName::Slstm, [16, 256, 3, 256]),
];

const fn workload(cell: CellName, [batch, time, heads, head_dim]: [usize; 4]) -> Workload {
    Workload { cell, batch, time, heads, head_dim }
}

/// What is timed.
#[derive(Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Pass {
    /// Inference.
    Fwd,
    /// A step of training.
    FwdBwd,
}

/// One measurement; times in milliseconds.
#[derive(Serialize)]
#[allow(non_snake_case)] // the sizes' names in the equations are the keys of the JSON
struct Row {
    peer: String,
    cell: String,
    dtype: &'static str,
    B: usize,
    T: usize,
    N: usize,
    D: usize,
    pass: Pass,
    threads: usize,
    /// The median.
    ms: f64,
    min: f64,
    /// The lower and the upper quartile.
    q1: f64,
    q3: f64,
    runs: usize,
}

/// Times what the arguments ask for and prints it line by line.
pub fn main(args: Args, out: &mut impl Write) -> Result<()> {
    let budget = Duration::try_from_secs_f64(args.budget)
        .with_context(|| format!("option budget: got {}, wanted seconds, 0 or more", args.budget))?;
    let backend = match args.backend {
        BackendName::Auto | BackendName::Cpu => match args.threads {
            Some(threads) => Cpu::with_threads(threads)?,
            None => Cpu::new(),
        },
    };
    let workloads = workloads(&args);
    let threads = backend.threads();
    let info = backend.info();
    if !args.json {
        writeln!(out, "{} ({}), {threads} threads, {}; milliseconds", info.name, info.device, args.dtype)?;
        writeln!(
            out,
            "{:<6} {:>4} {:>5} {:>3} {:>5}  {:<16} {:>9} {:>9} {:>9} {:>9}",
            "cell", "B", "T", "N", "D", "pass", "median", "1/4 below", "3/4 below", "min"
        )?;
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} {eta} left")?;
    let bar = ProgressBar::new(2 * workloads.len() as u64).with_style(style);
    for work in workloads {
        for pass in [Pass::Fwd, Pass::FwdBwd] {
            let Workload { cell, batch, time, heads, head_dim } = work;
            bar.set_message(format!("{cell} {batch}x{time}x{heads}x{head_dim}"));
            let problem = Problem::new(batch, time, heads, head_dim);
            let times = with_cell!(cell, |cell| {
                with_dtype!(args.dtype, |T| measure::<_, T, _>(&backend, &cell, &problem, pass, budget))
            })?;
            let row = Row {
                peer: format!("flashrnn-rs.{}", info.name),
                cell: cell.to_string(),
                dtype: args.dtype.long(),
                B: batch,
                T: time,
                N: heads,
                D: head_dim,
                pass,
                threads,
                ms: quantile(&times, 0.5),
                min: quantile(&times, 0.0),
                q1: quantile(&times, 0.25),
                q3: quantile(&times, 0.75),
                runs: times.len(),
            };
            let line = if args.json { serde_json::to_string(&row)? } else { line(&row)? };
            bar.suspend(|| writeln!(out, "{line}").and_then(|()| out.flush()))?;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// The one workload whose sizes were given, or the list.
fn workloads(args: &Args) -> Vec<Workload> {
    if let (None, None, None, None) = (args.batch, args.seq_len, args.heads, args.head_dim) {
        return WORKLOADS.into_iter().filter(|w| args.cell.is_none_or(|cell| cell == w.cell)).collect();
    }
    vec![Workload {
        cell: args.cell.unwrap_or(CellName::Lstm),
        batch: args.batch.unwrap_or(16),
        time: args.seq_len.unwrap_or(256),
        heads: args.heads.unwrap_or(1),
        head_dim: args.head_dim.unwrap_or(512),
    }]
}

fn line(row: &Row) -> Result<String> {
    let pass = match row.pass {
        Pass::Fwd => "forward",
        Pass::FwdBwd => "forward+backward",
    };
    let mut line = format!("{:<6} {:>4} {:>5} {:>3} {:>5}", row.cell, row.B, row.T, row.N, row.D);
    write!(line, "  {pass:<16} {:>9.3} {:>9.3} {:>9.3} {:>9.3}", row.ms, row.q1, row.q3, row.min)?;
    Ok(line)
}

/// The `q`-quantile of sorted `times`, in milliseconds, rounded to a microsecond.
fn quantile(times: &[Duration], q: f64) -> f64 {
    let last = times.len().saturating_sub(1);
    let time = times.get((q * last as f64).round() as usize).copied().unwrap_or_default();
    (1e6 * time.as_secs_f64()).round() / 1e3
}

/// Times `call`, and sorts the times.
fn repeat(budget: Duration, mut call: impl FnMut() -> flashrnn::Result<()>) -> Result<Vec<Duration>> {
    for _ in 0..2 {
        call()?;
    }
    let mut times = Vec::new();
    let start = Instant::now();
    while times.len() < 5 || start.elapsed() < budget {
        let before = Instant::now();
        call()?;
        times.push(before.elapsed());
    }
    times.sort_unstable();
    Ok(times)
}

/// Sorted times of one pass over `problem` with random data.
fn measure<B: Backend, T: Element, C: Cell>(
    backend: &B,
    cell: &C,
    problem: &Problem,
    pass: Pass,
    budget: Duration,
) -> Result<Vec<Duration>> {
    let plan = backend.plan::<T, T, C>(cell, problem)?;
    let shapes = plan.shapes();
    let size = |shape: &[usize]| shape.iter().product::<usize>();
    let mut random = StdRng::seed_from_u64(0);
    // Uniform with variance `deviation`².
    let mut upload = |shape: &[usize], deviation: f64| {
        let bound = 3f64.sqrt() * deviation;
        let values = (0..size(shape)).map(|_| T::from_f64(random.random_range(-bound..bound)));
        backend.upload(&values.collect::<Vec<T>>())
    };
    let wx = upload(&shapes.wx(), 1.0)?;
    let r = upload(&shapes.r(), 1.0 / (shapes.head_dim as f64).sqrt())?;
    let b = upload(&shapes.b(), 1.0)?;
    let mut last = backend.alloc::<T::Wide>(size(&shapes.state()))?;

    if pass == Pass::Fwd {
        let mut h = backend.alloc::<T>(size(&shapes.h()))?;
        let weights = plan.pack(backend.view(&r), backend.view(&b))?;
        return repeat(budget, || {
            plan.forward(Forward {
                h: Some(backend.view_mut(&mut h)),
                last: Some(backend.view_mut(&mut last)),
                ..Forward::new(backend.view(&wx), &weights)
            })?;
            backend.synchronize()
        });
    }

    let d_h = upload(&shapes.h(), 1.0)?;
    let mut states = backend.alloc::<T>(size(&shapes.states()))?;
    let mut saved = plan.saved()?;
    let mut d_wx = backend.alloc::<T>(size(&shapes.wx()))?;
    let mut d_r = backend.alloc::<T>(size(&shapes.r()))?;
    let mut d_b = backend.alloc::<T>(size(&shapes.b()))?;
    let mut d_s0 = backend.alloc::<T::Wide>(size(&shapes.state()))?;
    repeat(budget, || {
        let weights = plan.pack(backend.view(&r), backend.view(&b))?;
        plan.forward(Forward {
            states: Some(backend.view_mut(&mut states)),
            last: Some(backend.view_mut(&mut last)),
            saved: Some(&mut saved),
            ..Forward::new(backend.view(&wx), &weights)
        })?;
        plan.backward(Backward {
            d_h: Some(backend.view(&d_h)),
            d_r: Some(backend.view_mut(&mut d_r)),
            d_b: Some(backend.view_mut(&mut d_b)),
            d_s0: Some(backend.view_mut(&mut d_s0)),
            ..Backward::new(&weights, backend.view(&states), &saved, backend.view_mut(&mut d_wx))
        })?;
        backend.synchronize()
    })
}
