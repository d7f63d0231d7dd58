//! `flashrnn bench`: times forward and forward+backward.
//!
//! - forward is inference. It returns h at every step and the final state, with weights packed
//!   beforehand, and saves nothing.
//! - forward+backward is a training step. It packs the weights, saves states and gates, takes the
//!   gradient of h, and returns the gradients of wx, R, b and the initial state.
//! - pack (only on request) packs R and b.
//! - step (only on request) is one call of [`flashrnn::Plan::step`].
//!
//! Buffers are allocated beforehand, and the timed region includes the synchronisation of the
//! backend. After three warm-up calls, at least five calls are timed, and more until the time
//! budget is spent.

#[cfg(feature = "cuda")]
mod first_call;
mod measure;
mod workloads;

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use flashrnn::{AnyBackend, Backend, BackendName, Cpu};
use flashrnn_gpu::Family;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::backend;
use crate::choice::{CellName, DtypeName, with_cell, with_dtype};
use measure::{Pass, measure, milliseconds, round};
use workloads::{HEAD, List, Workload};

/// The arguments of `flashrnn bench`.
#[derive(clap::Args)]
pub struct Args {
    /// The backend to run on.
    #[arg(long, default_value_t, value_parser = backend::parser())]
    backend: BackendName,
    /// The kernels a GPU runs.
    #[arg(long, default_value_t, value_parser = backend::kernel_parser())]
    kernel: Family,
    /// The cell [default: every cell in the list of workloads, or lstm if a size is given].
    #[arg(long)]
    cell: Option<CellName>,
    /// The element type of every tensor [default: that of the list, or f32 if a size is given].
    #[arg(long)]
    dtype: Option<DtypeName>,
    /// The list of problems [default: that of the backend, or none if a size is given].
    #[arg(long, value_name = "LIST", conflicts_with_all = ["batch", "seq_len", "heads", "head_dim"])]
    workloads: Option<List>,
    /// The number of sequences [default if another size is given: 16].
    #[arg(long, value_name = "B")]
    batch: Option<usize>,
    /// The number of time steps [default if another size is given: 256].
    #[arg(long, value_name = "T")]
    seq_len: Option<usize>,
    /// The number of heads [default if another size is given: 1].
    #[arg(long, value_name = "N")]
    heads: Option<usize>,
    /// The number of units per head [default if another size is given: 512].
    #[arg(long, value_name = "D")]
    head_dim: Option<usize>,
    /// The number of threads of the cpu backend [default: all cores].
    #[arg(long)]
    threads: Option<usize>,
    /// The time to spend on each measurement, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, allow_negative_numbers = true)]
    budget: f64,
    /// The operations to time.
    #[arg(long, value_name = "PASS", value_delimiter = ',', default_value = "fwd,fwdbwd")]
    passes: Vec<Pass>,
    /// Print one JSON object per line instead of a table.
    #[arg(long)]
    json: bool,
    /// Time the first call on a GPU instead, in a process that has run another problem: first after
    /// clearing the kernel cache on disk, then with the cached kernels.
    #[arg(long)]
    first_call: bool,
}

/// The JSON object of one measurement. Times are in milliseconds.
#[derive(Serialize)]
#[allow(non_snake_case)] // the keys are the names of the sizes in the equations
struct Row<'a> {
    peer: &'a str,
    device: &'a str,
    cell: String,
    dtype: &'static str,
    B: usize,
    T: usize,
    N: usize,
    D: usize,
    pass: Pass,
    #[serde(skip_serializing_if = "Option::is_none")]
    threads: Option<usize>,
    /// The median.
    ms: f64,
    min: f64,
    /// The interquartile range.
    iqr: f64,
    /// The lower quartile.
    q1: f64,
    /// The upper quartile.
    q3: f64,
    runs: usize,
}

/// Times the selected workloads and prints each result as a line.
pub fn main(args: Args, out: &mut impl Write) -> Result<()> {
    let budget = Duration::try_from_secs_f64(args.budget).with_context(|| {
        format!("option budget: got {}, wanted at least 0 seconds", args.budget)
    })?;
    let found = match (args.threads, args.backend) {
        (None, backend) => backend::find(backend, args.dtype, args.kernel)?,
        (Some(threads), BackendName::Auto | BackendName::Cpu) => {
            backend::with_kernel(AnyBackend::Cpu(Cpu::with_threads(threads)?), args.kernel)?
        }
        (Some(_), other) => bail!("--threads needs --backend cpu, got --backend {other}"),
    };
    let workloads = workloads(&args, &found);
    #[cfg(feature = "cuda")]
    if let (true, AnyBackend::Cuda(_)) = (args.first_call, &found) {
        return first_call::main(&workloads, args.json, out);
    }
    if args.first_call {
        bail!("--first-call times the compilation of kernels and needs --backend cuda");
    }
    let info = found.info();
    let peer = format!("flashrnn-rs.{}", info.name);
    let threads = backend::threads(&found);
    if !args.json {
        writeln!(out, "{} ({}), milliseconds", info.name, info.device)?;
        writeln!(
            out,
            "{HEAD}  {:<16} {:>9} {:>10} {:>10} {:>9}",
            "pass", "median", "quartile 1", "quartile 3", "min"
        )?;
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} {eta} left")?;
    let bar = ProgressBar::new((args.passes.len() * workloads.len()) as u64).with_style(style);
    for work in workloads {
        for &pass in &args.passes {
            bar.set_message(format!(
                "{} {}x{}x{}x{}",
                work.cell, work.batch, work.time, work.heads, work.head_dim
            ));
            let times = with_cell!(work.cell, |cell| {
                with_dtype!(work.dtype, |T| {
                    measure::<_, T, _>(&found, &cell, &work.problem(), pass, budget)
                })
            })?;
            let (q1, q3) = (quantile(&times, 0.25), quantile(&times, 0.75));
            let row = Row {
                peer: &peer,
                device: &info.device,
                cell: work.cell.to_string(),
                dtype: work.dtype.long(),
                B: work.batch,
                T: work.time,
                N: work.heads,
                D: work.head_dim,
                pass,
                threads,
                ms: quantile(&times, 0.5),
                min: quantile(&times, 0.0),
                iqr: round(q3 - q1),
                q1,
                q3,
                runs: times.len(),
            };
            let line = if args.json { serde_json::to_string(&row)? } else { line(&work, &row) };
            bar.suspend(|| writeln!(out, "{line}").and_then(|()| out.flush()))?;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// Returns the workload whose sizes were given, or a list.
fn workloads(args: &Args, found: &AnyBackend) -> Vec<Workload> {
    if let (None, None, None, None) = (args.batch, args.seq_len, args.heads, args.head_dim) {
        let list = args.workloads.unwrap_or(if found.is_gpu() { List::Gpu } else { List::Cpu });
        let with_dtype =
            |&work: &Workload| Workload { dtype: args.dtype.unwrap_or(work.dtype), ..work };
        let selected = |work: &Workload| args.cell.is_none_or(|cell| cell == work.cell);
        return list.workloads().iter().map(with_dtype).filter(selected).collect();
    }
    vec![Workload {
        cell: args.cell.unwrap_or(CellName::Lstm),
        dtype: args.dtype.unwrap_or_default(),
        batch: args.batch.unwrap_or(16),
        time: args.seq_len.unwrap_or(256),
        heads: args.heads.unwrap_or(1),
        head_dim: args.head_dim.unwrap_or(512),
    }]
}

fn line(work: &Workload, row: &Row) -> String {
    let pass = match row.pass {
        Pass::Fwd => "forward",
        Pass::FwdBwd => "forward+backward",
        Pass::Pack => "pack",
        Pass::Step => "step",
    };
    format!("{work}  {pass:<16} {:>9.3} {:>10.3} {:>10.3} {:>9.3}", row.ms, row.q1, row.q3, row.min)
}

/// Returns the `q`-quantile of sorted `times`, in milliseconds.
fn quantile(times: &[Duration], q: f64) -> f64 {
    let last = times.len().saturating_sub(1);
    milliseconds(times.get((q * last as f64).round() as usize).copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    /// Returns the workloads on the CPU for the command line `flags`.
    fn selected(flags: &str) -> Result<Vec<Workload>> {
        let line = Line::try_parse_from(["bench"].into_iter().chain(flags.split_whitespace()))?;
        Ok(workloads(&line.args, &AnyBackend::Cpu(Cpu::new())))
    }

    #[test]
    fn flags_select_the_workloads() -> Result<()> {
        let all = selected("")?;
        assert!(all.len() == 14 && all.iter().all(|work| work.dtype == DtypeName::F32));
        let gru = selected("--workloads gpu --cell gru")?;
        let lines = gru.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            lines,
            ["gru    bf16    16  1024   3   256", "gru    bf16    16  1024   1   768"]
        );
        assert_eq!(HEAD.len(), lines[0].len());
        assert!(
            selected("--workloads gpu --dtype f16")?
                .iter()
                .all(|work| work.dtype == DtypeName::F16)
        );
        let one = selected("--heads 3")?;
        assert_eq!(one[0].to_string(), "lstm   f32     16   256   3   512");
        assert_eq!(one.len(), 1);
        assert!(selected("--workloads gpu --heads 3").is_err());
        Ok(())
    }
}
