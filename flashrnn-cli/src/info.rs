//! `flashrnn info`: lists the backends with their devices and element types, and the kernels chosen
//! for a problem.

use std::io::Write;
use std::thread;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
use std::{io, path::PathBuf};

#[cfg(any(feature = "cuda", feature = "wgpu"))]
use anyhow::Context;
use anyhow::{Result, bail};
use flashrnn::{AnyBackend, Backend, BackendName, Cell, Cpu, Element, Info, Problem};
use flashrnn_gpu::Family;

use crate::backend;
use crate::choice::{CellName, DtypeName, with_cell, with_dtype};

/// The arguments of `flashrnn info`.
#[derive(clap::Args)]
pub struct Args {
    /// Delete the compiled GPU kernels cached on disk.
    #[arg(long)]
    clear_cache: bool,
    /// Print the kernels that a GPU runs for a problem with this cell.
    #[arg(long, requires_all = ["heads", "head_dim", "batch"])]
    cell: Option<CellName>,
    /// The number of heads of the problem.
    #[arg(long, value_name = "N", requires = "cell")]
    heads: Option<usize>,
    /// The number of units per head of the problem.
    #[arg(long, value_name = "D", requires = "cell")]
    head_dim: Option<usize>,
    /// The number of sequences of the problem.
    #[arg(long, value_name = "B", requires = "cell")]
    batch: Option<usize>,
    /// The number of time steps of the problem.
    #[arg(long, value_name = "T", default_value_t = 1024)]
    seq_len: usize,
    /// The element type of the problem.
    #[arg(long, default_value_t = DtypeName::Bf16)]
    dtype: DtypeName,
    /// The backend to choose kernels for.
    #[arg(long, default_value_t, value_parser = backend::parser(), requires = "cell")]
    backend: BackendName,
    /// The kernels to choose from.
    #[arg(long, default_value_t, value_parser = backend::kernel_parser(), requires = "cell")]
    kernel: Family,
}

/// Prints a block for each backend, or the kernels of a problem.
pub fn main(args: &Args, out: &mut impl Write) -> Result<()> {
    if args.clear_cache {
        return clear_cache(out);
    }
    if let (Some(cell), Some(heads), Some(head_dim), Some(batch)) =
        (args.cell, args.heads, args.head_dim, args.batch)
    {
        let problem = Problem::new(batch, args.seq_len, heads, head_dim);
        let backend = backend::find(args.backend, Some(args.dtype), args.kernel)?;
        return kernels(&backend, cell, &problem, args.dtype, out);
    }
    writeln!(out, "flashrnn {}", env!("CARGO_PKG_VERSION"))?;
    writeln!(out)?;
    let threads =
        thread::available_parallelism().map_or_else(|_| "unknown".into(), |n| n.to_string());
    found(&Cpu::new().info(), out)?;
    line(out, "threads", &threads)?;
    writeln!(out)?;
    cuda(out)?;
    writeln!(out)?;
    wgpu(out)?;
    writeln!(out)?;
    writeln!(out, "cells: {}", CellName::ALL.map(|cell| cell.to_string()).join(", "))?;
    let auto = AnyBackend::new(BackendName::Auto)?;
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

/// Prints the block of a backend that is not available.
fn missing(name: BackendName, why: &str, out: &mut impl Write) -> Result<()> {
    writeln!(out, "backend {name}")?;
    line(out, "status", why)
}

fn not_compiled(name: BackendName) -> String {
    format!("not compiled in; build the command with `--features {name}`")
}

#[cfg(not(feature = "cuda"))]
fn cuda(out: &mut impl Write) -> Result<()> {
    missing(BackendName::Cuda, &not_compiled(BackendName::Cuda), out)
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

/// Deletes the files that GPU backends cache on disk.
#[cfg_attr(not(any(feature = "cuda", feature = "wgpu")), allow(unused_variables))]
fn clear_cache(out: &mut impl Write) -> Result<()> {
    #[cfg(feature = "cuda")]
    cleared(BackendName::Cuda, flashrnn::cuda::cache::folder(), flashrnn::cuda::cache::clear, out)?;
    #[cfg(feature = "wgpu")]
    cleared(BackendName::Wgpu, flashrnn::wgpu::cache::folder(), flashrnn::wgpu::cache::clear, out)?;
    if !cfg!(any(feature = "cuda", feature = "wgpu")) {
        bail!("there is no cache, because cuda is {}", not_compiled(BackendName::Cuda));
    }
    Ok(())
}

#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn cleared(
    name: BackendName,
    folder: Option<PathBuf>,
    clear: impl FnOnce() -> io::Result<usize>,
    out: &mut impl Write,
) -> Result<()> {
    let Some(folder) = folder else {
        return Ok(writeln!(out, "the kernel cache of {name} is off")?);
    };
    let folder = folder.display();
    let deleted = clear().with_context(|| format!("can't clear the kernel cache {folder}"))?;
    Ok(writeln!(out, "deleted {deleted} files of {name} from {folder}")?)
}

/// Prints the kernels chosen for a problem.
fn kernels(
    backend: &AnyBackend,
    cell: CellName,
    problem: &Problem,
    dtype: DtypeName,
    out: &mut impl Write,
) -> Result<()> {
    let lines =
        with_cell!(cell, |cell| with_dtype!(dtype, |T| lines::<T, _>(backend, &cell, problem)))?;
    let info = backend.info();
    let Problem { batch, time, heads, head_dim, .. } = problem;
    writeln!(
        out,
        "{} ({}), {cell}, {dtype}, B {batch}, T {time}, N {heads}, D {head_dim}",
        info.name, info.device
    )?;
    for line in lines {
        writeln!(out, "  {line}")?;
    }
    Ok(())
}

/// Describes each kernel of a plan on a GPU.
fn lines<T: Element, C: Cell>(
    backend: &AnyBackend,
    cell: &C,
    problem: &Problem,
) -> Result<Vec<String>> {
    match backend {
        #[cfg(feature = "cuda")]
        AnyBackend::Cuda(cuda) => Ok(cuda
            .plan::<T, T, C>(cell, problem)?
            .kernels()
            .map(|kernel| kernel.to_string())
            .into()),
        #[cfg(feature = "wgpu")]
        AnyBackend::Wgpu(wgpu) => Ok(wgpu
            .plan::<T, T, C>(cell, problem)?
            .kernels()
            .map(|kernel| kernel.to_string())
            .into()),
        backend => {
            let name = backend.plan::<T, T, C>(cell, problem).map(|_| backend.info().name)?;
            bail!("the backend {name} has no kernels to choose from")
        }
    }
}
