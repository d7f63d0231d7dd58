//! `flashrnn run`: runs one problem from a file, so that the operator can be checked from Python.
//!
//! | tensor in | shape (batch-major) | element type | |
//! |---|---|---|---|
//! | `Wx` | `[B, T, Gx, N, D]` | any float | input pre-activations |
//! | `R` | `[Gr, N, D_out, D_in]` | any float | recurrent weights |
//! | `b` | `[G, N, D]` | any float | bias |
//! | `states` | `[S, B, N, D]` | any float | initial state; default zeros |
//! | `lengths` | `[B]` | i64, i32 | number of steps of each row; default T |
//! | `resets` | `[B, T]` | u8, bool | nonzero flags zero the state before the step |
//! | `d_states` | `[S, B, T, N, D]` | any float | gradient of every state; default zeros |
//! | `d_last_states` | `[S, B, N, D]` | any float | gradient of the final state; default zeros |
//!
//! | tensor out | shape | element type |
//! |---|---|---|
//! | `states` | `[S, B, T, N, D]` | `--dtype` |
//! | `last_states` | `[S, B, N, D]` | f64 for f64, else f32 |
//! | `d_Wx`, `d_R`, `d_b` | those of `Wx`, `R`, `b` | `--dtype` |
//! | `d_states_initial` | `[S, B, N, D]` | f64 for f64, else f32 |
//!
//! Gradients are computed only with `--backward`. Without it, `d_states` and `d_last_states` are
//! checked but otherwise ignored, so that the same file works in both cases.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use flashrnn::{
    Backend, BackendName, Backward, Cell, CellSizes, Element, Forward, Plan, Problem, Shapes,
};
use flashrnn_gpu::Family;

use crate::backend;
use crate::choice::{CellName, DtypeName, with_cell, with_dtype};
use crate::options::OptionArgs;
use crate::tensors::{self, Input, Output};

/// The names of all tensors that the input may contain.
const KNOWN: [&str; 8] =
    ["Wx", "R", "b", "states", "lengths", "resets", "d_states", "d_last_states"];

/// The arguments of `flashrnn run`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Input tensors: Wx [B,T,Gx,N,D], R [Gr,N,D,D], b [G,N,D], and optionally states [S,B,N,D] (the
initial state), lengths [B], resets [B,T], d_states [S,B,T,N,D], d_last_states [S,B,N,D] (the
incoming gradients of --backward; zeros if absent, and unused without --backward).
Output tensors: states [S,B,T,N,D], last_states [S,B,N,D], and with --backward d_Wx, d_R, d_b,
d_states_initial.
With --time-major, T comes before B in Wx, resets, states, d_states and d_Wx, but not in the
initial and final states.")]
pub struct Args {
    /// The safetensors file that contains the problem.
    input: PathBuf,
    /// The safetensors file to write.
    #[arg(short, long)]
    output: PathBuf,
    /// The cell.
    #[arg(long)]
    cell: CellName,
    /// The backend to run on.
    #[arg(long, default_value_t, value_parser = backend::parser())]
    backend: BackendName,
    /// The kernels a GPU runs.
    #[arg(long, default_value_t, value_parser = backend::kernel_parser())]
    kernel: Family,
    /// The element type to compute in. Inputs are converted to it.
    #[arg(long, default_value_t)]
    dtype: DtypeName,
    /// Also compute the gradients.
    #[arg(long)]
    backward: bool,
    #[command(flatten)]
    options: OptionArgs,
}

/// Reads the problem, runs it, and writes the results.
pub fn main(args: Args) -> Result<()> {
    let backend = backend::find(args.backend, Some(args.dtype), args.kernel)?;
    let bytes = tensors::read(&args.input)?;
    let outputs = with_cell!(args.cell, |cell| {
        with_dtype!(args.dtype, |T| compute::<_, T, _>(&backend, &cell, &args, &bytes))
    })
    .with_context(|| args.input.display().to_string())?;
    tensors::write(&args.output, &outputs)
}

/// Makes the problem described by the options and the shape of `Wx`.
fn problem<C: Cell>(args: &Args, input: &Input) -> Result<Problem> {
    let wx = input.shape("Wx")?;
    let [outer, inner, external, heads, head_dim] = wx[..] else {
        let want = if args.options.time_major { "[T, B, Gx, N, D]" } else { "[B, T, Gx, N, D]" };
        bail!("Wx: got shape {wx:?}, wanted five dimensions, {want}");
    };
    if external != C::GX {
        bail!("Wx: got shape {wx:?}, wanted {} gates as the third dimension of {}", C::GX, C::NAME);
    }
    let (batch, time) = if args.options.time_major { (inner, outer) } else { (outer, inner) };
    Ok(Problem::new(batch, time, heads, head_dim).with(args.options.options()))
}

/// Reads the lengths `[B]`, and checks them before converting them to i32.
fn lengths(input: &Input, shapes: &Shapes) -> Result<Option<Vec<i32>>> {
    let Some(lengths) = input.integers("lengths", &[shapes.batch])? else { return Ok(None) };
    let narrow = |(row, &length): (usize, &i64)| match i32::try_from(length) {
        Ok(n) if usize::try_from(n).is_ok_and(|n| n <= shapes.time) => Ok(n),
        _ => bail!("lengths[{row}] is {length}, wanted 0 to {}", shapes.time),
    };
    lengths.iter().enumerate().map(narrow).collect::<Result<_>>().map(Some)
}

/// Reads a required tensor.
fn required<P: Element>(input: &Input, name: &str, want: &[usize]) -> Result<Vec<P>> {
    input.shape(name)?;
    input.floats(name, want)?.with_context(|| format!("tensor {name} is missing"))
}

/// Checks that the size of the results is in proportion to that of the file. With T = 0, a small
/// file can declare any B.
fn check_results<T: Element>(shapes: &Shapes, file: usize) -> Result<()> {
    // If the file's tensors are not empty, the results are at most 32 times as large as the file,
    // including all gradients and a conversion from 16 to 64 bits.
    const MAX_RATIO: u128 = 64;
    const ALWAYS_ALLOWED: u128 = 64 << 20;
    let bytes = |shape: &[usize], each: usize| {
        shape.iter().fold(each as u128, |p, &n| p.saturating_mul(n as u128))
    };
    let results = bytes(&shapes.states(), size_of::<T>())
        .saturating_add(bytes(&shapes.state(), size_of::<T::Wide>()));
    if results > ALWAYS_ALLOWED.max(MAX_RATIO * file as u128) {
        bail!(
            "the results would take {results} bytes of memory, too much for a file of {file} bytes"
        );
    }
    Ok(())
}

/// Runs the problem in `bytes`, and returns every tensor to write.
fn compute<B: Backend, T: Element, C: Cell>(
    backend: &B,
    cell: &C,
    args: &Args,
    bytes: &[u8],
) -> Result<Vec<(&'static str, Output)>> {
    let input = Input::parse(bytes, &KNOWN)?;
    let problem = problem::<C>(args, &input)?;
    let shapes = problem.shapes::<C>()?;
    let size = |shape: &[usize]| shape.iter().product::<usize>();
    check_results::<T>(&shapes, bytes.len())?;

    let wx = required::<T>(&input, "Wx", &shapes.wx())?;
    let r = required::<T>(&input, "R", &shapes.r())?;
    let b = required::<T>(&input, "b", &shapes.b())?;
    let s0 = input.floats::<T::Wide>("states", &shapes.state())?;
    let lengths = lengths(&input, &shapes)?;
    let resets = input.flags("resets", &shapes.resets())?;
    let d_states = input.floats::<T>("d_states", &shapes.states())?;
    let d_last = input.floats::<T::Wide>("d_last_states", &shapes.state())?;

    let mut states = backend.alloc::<T>(size(&shapes.states()))?;
    let mut last = backend.alloc::<T::Wide>(size(&shapes.state()))?;
    let plan = backend.plan::<T, T, C>(cell, &problem)?;
    let (r, b) = (backend.upload(&r)?, backend.upload(&b)?);
    let weights = plan.pack(backend.view(&r), backend.view(&b))?;
    let wx = backend.upload(&wx)?;
    let s0 = s0.map(|s0| backend.upload(&s0)).transpose()?;
    let lengths = lengths.map(|lengths| backend.upload(&lengths)).transpose()?;
    let resets = resets.map(|resets| backend.upload(&resets)).transpose()?;
    let mut saved = if args.backward { Some(plan.saved()?) } else { None };
    plan.forward(Forward {
        s0: s0.as_ref().map(|s0| backend.view(s0)),
        lengths: lengths.as_ref().map(|lengths| backend.view(lengths)),
        resets: resets.as_ref().map(|resets| backend.view(resets)),
        states: Some(backend.view_mut(&mut states)),
        last: Some(backend.view_mut(&mut last)),
        saved: saved.as_mut().map(flashrnn::Saved::view_mut),
        ..Forward::new(&weights, backend.view(&wx))
    })?;
    let mut outputs = vec![
        ("states", Output::new(&shapes.states(), &backend.download(backend.view(&states))?)),
        ("last_states", Output::new(&shapes.state(), &backend.download(backend.view(&last))?)),
    ];
    let Some(saved) = &saved else { return Ok(outputs) };

    let d_states = d_states.map(|d_states| backend.upload(&d_states)).transpose()?;
    let d_last = d_last.map(|d_last| backend.upload(&d_last)).transpose()?;
    let mut d_wx = backend.alloc::<T>(size(&shapes.wx()))?;
    let mut d_r = backend.alloc::<T>(size(&shapes.r()))?;
    let mut d_b = backend.alloc::<T>(size(&shapes.b()))?;
    let mut d_s0 = backend.alloc::<T::Wide>(size(&shapes.state()))?;
    plan.backward(Backward {
        wx: Some(backend.view(&wx)),
        s0: s0.as_ref().map(|s0| backend.view(s0)),
        lengths: lengths.as_ref().map(|lengths| backend.view(lengths)),
        resets: resets.as_ref().map(|resets| backend.view(resets)),
        d_states: d_states.as_ref().map(|d_states| backend.view(d_states)),
        d_last: d_last.as_ref().map(|d_last| backend.view(d_last)),
        d_r: Some(backend.view_mut(&mut d_r)),
        d_b: Some(backend.view_mut(&mut d_b)),
        d_s0: Some(backend.view_mut(&mut d_s0)),
        ..Backward::new(&weights, backend.view(&states), saved.view(), backend.view_mut(&mut d_wx))
    })?;
    outputs.extend([
        ("d_Wx", Output::new(&shapes.wx(), &backend.download(backend.view(&d_wx))?)),
        ("d_R", Output::new(&shapes.r(), &backend.download(backend.view(&d_r))?)),
        ("d_b", Output::new(&shapes.b(), &backend.download(backend.view(&d_b))?)),
        ("d_states_initial", Output::new(&shapes.state(), &backend.download(backend.view(&d_s0))?)),
    ]);
    Ok(outputs)
}
