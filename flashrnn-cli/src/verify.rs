//! `flashrnn verify`: compares the results of this machine with the f64 reference, for random
//! problems that cover every option.

use std::io::Write;

use anyhow::Result;
use flashrnn::{Backend, BackendName, Cell, Element, Layout, Options, Problem, Save};
use flashrnn_gpu::Family;
use flashrnn_testsuite::random::Random;
use flashrnn_testsuite::{Case, Measured, Tensors, measure, run, tolerance};
use indicatif::{ProgressBar, ProgressStyle};

use crate::backend;
use crate::choice::{CellName, DtypeName, with_cell, with_dtype};

/// The arguments of `flashrnn verify`.
#[derive(clap::Args)]
pub struct Args {
    /// The backend to run on.
    #[arg(long, default_value_t, value_parser = backend::parser())]
    backend: BackendName,
    /// The kernels a GPU runs.
    #[arg(long, default_value_t, value_parser = backend::kernel_parser())]
    kernel: Family,
    /// The number of random problems per cell and element type.
    #[arg(long, value_name = "N", default_value_t = 16)]
    cases: u64,
    /// The seed of the random problems; the same seed generates the same problems.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// The largest error of one tensor over all cases.
#[derive(Clone, Copy)]
struct Worst {
    tensor: &'static str,
    error: f64,
    /// Whether the error exceeds the tolerance but is accepted because the case is ill-conditioned.
    excused: bool,
}

/// Runs the cases and prints the largest error of each tensor. Returns whether every error is
/// accepted.
pub fn main(args: Args, out: &mut impl Write) -> Result<bool> {
    let backend = backend::find(args.backend, None, args.kernel)?;
    let info = backend.info();
    let cells = CellName::ALL;
    let dtypes: Vec<DtypeName> =
        DtypeName::ALL.into_iter().filter(|&dtype| backend::supports(&backend, dtype)).collect();
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}")?;
    let total = args.cases.saturating_mul((cells.len() * dtypes.len()) as u64);
    let bar = ProgressBar::new(total).with_style(style);
    let mut columns = Vec::new();
    let mut failures = Vec::new();
    for dtype in dtypes {
        let mut worst = Vec::new();
        for cell in cells {
            bar.set_message(format!("{cell} {dtype}"));
            for case in 0..args.cases {
                with_cell!(cell, |cell| {
                    with_dtype!(dtype, |T| {
                        let seed = args.seed.wrapping_add(case);
                        one::<_, T, _>(&backend, &cell, seed, &mut worst, &mut failures)
                    })
                })?;
                bar.inc(1);
            }
        }
        columns.push((dtype, worst));
    }
    bar.finish_and_clear();
    writeln!(
        out,
        "{} ({}), {total} random problems, seed {}: largest relative error (norm over norm) of \
         each tensor",
        info.name, info.device, args.seed
    )?;
    table(out, &columns)?;
    for failure in &failures {
        writeln!(out, "{failure}")?;
    }
    match failures.len() {
        0 => writeln!(out, "every tensor is within its tolerance")?,
        n => writeln!(out, "{n} tensors exceed their tolerance")?,
    }
    Ok(failures.is_empty())
}

/// Prints a table with one column per element type and one row per tensor.
fn table(out: &mut impl Write, columns: &[(DtypeName, Vec<Worst>)]) -> Result<()> {
    write!(out, "{:<10}", "")?;
    for (dtype, _) in columns {
        write!(out, "{:>12}", dtype.to_string())?;
    }
    writeln!(out)?;
    let tensors = columns.first().map_or(&[][..], |(_, worst)| worst);
    for (row, first) in tensors.iter().enumerate() {
        write!(out, "{:<10}", first.tensor)?;
        for (_, worst) in columns {
            match worst.get(row) {
                Some(worst) => {
                    write!(out, "{:>11.1e}{}", worst.error, if worst.excused { '*' } else { ' ' })?
                }
                None => write!(out, "{:>12}", "-")?,
            }
        }
        writeln!(out)?;
    }
    write!(out, "{:<10}", "tolerance")?;
    for &(dtype, _) in columns {
        write!(out, "{:>11.1e} ", with_dtype!(dtype, |T| tolerance(T::DTYPE)))?;
    }
    writeln!(out)?;
    if columns.iter().flat_map(|(_, worst)| worst).any(|worst| worst.excused) {
        writeln!(
            out,
            "* accepted, since the reference changes as much if its input changes in the last place"
        )?;
    }
    Ok(())
}

/// Runs one case and records its errors.
fn one<B: Backend, T: Element, C: Cell>(
    backend: &B,
    cell: &C,
    seed: u64,
    worst: &mut Vec<Worst>,
    failures: &mut Vec<String>,
) -> Result<()> {
    let (problem, tensors) = random(&mut Random::new(seed));
    let case = Case::random::<C, T, T>(cell, &problem, tensors, seed)?;
    let results = run::<B, C, T, T>(backend, cell, &case)?;
    for (row, measured) in measure(cell, &case, T::DTYPE, &results)?.into_iter().enumerate() {
        let Measured { tensor, error, allowed } = measured;
        if !measured.passes() {
            let (name, dtype) = (C::NAME, T::DTYPE);
            failures.push(format!(
                "FAILED: {name} {dtype} seed {seed}: {tensor} has a relative error of \
                 {error:.1e}, allowed {allowed:.1e}\n  {problem:?}\n  {tensors:?}"
            ));
        }
        let excused = measured.passes() && error > tolerance(T::DTYPE);
        match worst.get_mut(row) {
            None => worst.push(Worst { tensor, error, excused }),
            Some(worst) if error > worst.error => *worst = Worst { tensor, error, excused },
            Some(_) => {}
        }
    }
    Ok(())
}

/// Returns a random problem with ragged sizes and any options.
fn random(random: &mut Random) -> (Problem, Tensors) {
    let mut pick = |sizes: &[usize]| sizes.get(random.below(sizes.len())).copied().unwrap_or(1);
    let batch = pick(&[1, 2, 3, 5, 8, 17]);
    let time = pick(&[0, 1, 2, 7, 16, 33]);
    let heads = pick(&[1, 1, 2, 3, 5]);
    let head_dim = pick(&[1, 3, 8, 16, 31, 33, 64, 65]);
    let problem = Problem::new(batch, time, heads, head_dim).with(Options {
        layout: if random.chance(0.5) { Layout::TimeMajor } else { Layout::BatchMajor },
        reverse: random.chance(0.5),
        forward_clip: random.chance(0.25).then_some(0.5),
        recurrent_grad_clip: random.chance(0.25).then_some(0.25),
        cut_recurrent_grad: random.chance(0.125),
        save: if random.chance(0.5) { Save::Recompute } else { Save::Gates },
        ..Options::default()
    });
    let tensors = Tensors {
        s0: random.chance(0.5),
        lengths: random.chance(0.5),
        resets: random.chance(0.5),
        d_states: random.chance(0.875),
        d_last: random.chance(0.5),
        extreme: random.chance(0.25),
    };
    (problem, tensors)
}
