//! `flashrnn info`: which backends there are, on which devices, with which element types, and which kernels a problem gets.

use std::io::Write;
use std::thread;

use anyhow::Result;
use flashrnn::{Backend, Cpu, Info};

use crate::backend::Found;
use crate::choice::{BackendName, CellName, DtypeName};

/// The arguments of `flashrnn info`.
#[derive(clap::Args)]
pub struct Args {
    /// Delete the kernels that were compiled for GPUs and kept on disk.
    #[arg(long)]
    clear_cache: bool,
    /// Say which kernels a problem with this cell gets on a GPU.
    #[arg(long, requires_all = ["heads", "head_dim", "batch"])]
    cell: Option<CellName>,
    /// The problem's number of heads.
    #[arg(long, value_name = "N", requires = "cell")]
    heads: Option<usize>,
    /// The problem's number of units of a head.
    #[arg(long, value_name = "D", requires = "cell")]
    head_dim: Option<usize>,
    /// The problem's number of sequences.
    #[arg(long, value_name = "B", requires = "cell")]
    batch: Option<usize>,
    /// The problem's number of time steps.
    #[arg(long, value_name = "T", default_value_t = 1024)]
    seq_len: usize,
    /// The problem's element type.
    #[arg(long, default_value_t = DtypeName::Bf16)]
    dtype: DtypeName,
}

/// Prints one block for each backend, or the kernels of a problem.
pub fn main(args: &Args, out: &mut impl Write) -> Result<()> {
    if args.clear_cache {
        return clear_cache(out);
    }
    if let (Some(cell), Some(heads), Some(head_dim), Some(batch)) =
        (args.cell, args.heads, args.head_dim, args.batch)
    {
        return kernels(cell, [batch, args.seq_len, heads, head_dim], args.dtype, out);
    }
    writeln!(out, "flashrnn {}", env!("CARGO_PKG_VERSION"))?;
    writeln!(out)?;
    let threads = thread::available_parallelism().map_or_else(|_| "unknown".into(), |n| n.to_string());
    found(&Cpu::new().info(), out)?;
    line(out, "threads", &threads)?;
    writeln!(out)?;
    cuda(out)?;
    writeln!(out)?;
    wgpu(out)?;
    writeln!(out)?;
    writeln!(out, "cells: {}", CellName::ALL.map(|cell| cell.to_string()).join(", "))?;
    let auto = Found::new(BackendName::Auto, None)?;
    writeln!(out, "--backend {} picks {}", BackendName::Auto, auto.info().name)?;
    Ok(())
}

fn found(info: &Info, out: &mut impl Write) -> Result<()> {
    let dtypes: Vec<String> = info.dtypes.iter().map(ToString::to_string).collect();
    writeln!(out, "backend {}", info.name)?;
    line(out, "status", "found, compiled in")?;
    line(out, "device", &info.device)?;
    line(out, "element types", &dtypes.join(", "))
}

fn line(out: &mut impl Write, name: &str, value: &str) -> Result<()> {
    Ok(writeln!(out, "  {name:<14} {value}")?)
}

/// A backend that can't be had.
fn missing(name: BackendName, why: &str, out: &mut impl Write) -> Result<()> {
    writeln!(out, "backend {name}")?;
    line(out, "status", why)
}

#[cfg(not(all(feature = "cuda", feature = "wgpu")))]
fn not_compiled(name: BackendName) -> String {
    format!("not compiled in: build the command with `--features {name}`")
}

#[cfg(not(feature = "cuda"))]
fn cuda(out: &mut impl Write) -> Result<()> {
    missing(BackendName::Cuda, &not_compiled(BackendName::Cuda), out)
}

#[cfg(not(feature = "cuda"))]
fn clear_cache(_: &mut impl Write) -> Result<()> {
    anyhow::bail!("there is no cache, since the backend cuda is {}", not_compiled(BackendName::Cuda))
}

#[cfg(not(feature = "cuda"))]
fn kernels(_: CellName, _: [usize; 4], _: DtypeName, _: &mut impl Write) -> Result<()> {
    anyhow::bail!(
        "there are no kernels to choose from, since the backend cuda is {}",
        not_compiled(BackendName::Cuda)
    )
}

#[cfg(feature = "cuda")]
fn cuda(out: &mut impl Write) -> Result<()> {
    use flashrnn::{Cuda, cuda};

    match Cuda::new() {
        Ok(cuda) => {
            found(&cuda.info(), out)?;
            line(out, "driver", &format!("for CUDA {}", cuda.driver_version()))?;
        }
        Err(why) => missing(BackendName::Cuda, &format!("compiled in, but {why}"), out)?,
    }
    for cuda::Library { name, found } in cuda::libraries() {
        line(out, name, &found.unwrap_or_else(|why| why.to_string()))?;
    }
    let cache = cuda::cache::folder().map_or("off".into(), |folder| folder.display().to_string());
    line(out, "kernel cache", &cache)
}

#[cfg(not(feature = "wgpu"))]
fn wgpu(out: &mut impl Write) -> Result<()> {
    missing(BackendName::Wgpu, &not_compiled(BackendName::Wgpu), out)
}

#[cfg(feature = "wgpu")]
fn wgpu(out: &mut impl Write) -> Result<()> {
    use flashrnn::{Wgpu, wgpu};

    match Wgpu::new() {
        Ok(wgpu) => found(&wgpu.info(), out)?,
        Err(why) => missing(BackendName::Wgpu, &format!("compiled in, but {why}"), out)?,
    }
    wgpu::adapters().iter().try_for_each(|adapter| line(out, "adapter", adapter))
}

#[cfg(feature = "cuda")]
fn clear_cache(out: &mut impl Write) -> Result<()> {
    use anyhow::Context;
    use flashrnn::cuda::cache;

    let Some(folder) = cache::folder() else { return Ok(writeln!(out, "the kernel cache is off")?) };
    let folder = folder.display();
    let deleted = cache::clear().with_context(|| format!("can't clear the kernel cache {folder}"))?;
    Ok(writeln!(out, "{deleted} compiled kernels deleted from {folder}")?)
}

/// Prints the kernels of a problem of `[B, T, N, D]`.
#[cfg(feature = "cuda")]
fn kernels(
    cell: CellName,
    [batch, time, heads, head_dim]: [usize; 4],
    dtype: DtypeName,
    out: &mut impl Write,
) -> Result<()> {
    use flashrnn::{Cuda, Problem};

    use crate::choice::{with_cell, with_dtype};

    let cuda = Cuda::new()?;
    let problem = Problem::new(batch, time, heads, head_dim);
    let kernels = with_cell!(cell, |cell| {
        with_dtype!(dtype, |T| cuda.plan::<T, T, _>(&cell, &problem).map(|plan| plan.kernels()))
    })?;
    let info = cuda.info();
    writeln!(
        out,
        "{} ({}), {cell}, {dtype}, B {batch}, T {time}, N {heads}, D {head_dim}",
        info.name, info.device
    )?;
    for kernel in kernels {
        writeln!(out, "  {kernel}")?;
    }
    Ok(())
}
