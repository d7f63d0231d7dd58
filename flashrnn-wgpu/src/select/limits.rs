//! Checks plans against the limits of a device.

use flashrnn_core::{Dtype, Error, Problem, Result, Save, Shapes};

use super::{self as select, Fused};
use crate::layout::workspace;

/// Returns the error for a problem that this backend cannot run.
pub fn unsupported(what: String, why: String) -> Error {
    Error::Unsupported { backend: "wgpu", what, why }
}

/// Checks that the device can bind every tensor. `max_bytes` is the maximum size of a binding.
///
/// # Errors
/// [`Error::Unsupported`] if a tensor is too large.
pub fn check_limits(
    max_bytes: u64,
    shapes: &Shapes,
    problem: &Problem,
    element: Dtype,
    fused: Option<Fused>,
) -> Result<()> {
    for (what, bytes) in bound_sizes(shapes, problem.options.save, element, fused) {
        if bytes > max_bytes.into() {
            let what = format!("{what} of {bytes} bytes");
            return Err(unsupported(what, format!("the device binds at most {max_bytes} bytes")));
        }
    }
    Ok(())
}

/// Checks that a buffer can hold scratch memory with the region sizes `regions`.
///
/// # Errors
/// [`Error::Unsupported`] if the buffer would be too large.
pub fn check_scratch(max_buffer: u64, regions: &[usize]) -> Result<()> {
    let bytes = workspace(regions).bytes;
    if bytes as u64 <= max_buffer {
        return Ok(());
    }
    let what = format!("scratch memory of {bytes} bytes");
    Err(unsupported(what, format!("the device's largest buffer has {max_buffer} bytes")))
}

/// Checks that the driver runs the products' loops to their end. `long_loops` is called only if
/// they are long.
///
/// # Errors
/// [`Error::Unsupported`] if the driver ends long loops early, and the errors of `long_loops`.
pub fn check_loops(shapes: &Shapes, long_loops: impl FnOnce() -> Result<bool>) -> Result<()> {
    if select::longest_loop(shapes) <= select::MAX_LOOP || long_loops()? {
        return Ok(());
    }
    let what = format!("head_dim {} with {} recurrent gates", shapes.head_dim, shapes.recurrent);
    Err(unsupported(what, "this driver ends long loops early".into()))
}

/// Returns the sizes of bindings, in bytes. h and its gradient are no larger than the states, wx
/// and its gradient no larger than saved gates. (With [`Save::Recompute`], only calls check wx.)
/// `element` is T.
fn bound_sizes(
    shapes: &Shapes,
    save: Save,
    element: Dtype,
    fused: Option<Fused>,
) -> [(&'static str, u128); 8] {
    let narrow = element != Dtype::F32;
    let bytes = if narrow { 2 } else { 4 };
    let (units, batch, time) = (shapes.units() as u128, shapes.batch as u128, shapes.time as u128);
    let (states, gates) = (shapes.states as u128, shapes.gates as u128);
    let step = batch * time * units;
    let state = states * batch * units;
    let rows = batch + (batch * time).div_ceil(4);
    let gates_bytes = match save {
        Save::Gates => gates * step * bytes,
        Save::Recompute => {
            let step = gates * batch * units;
            select::recomputed_steps(shapes.time, step as usize) as u128 * step * 4
        }
    };
    let wide_gates = if save == Save::Gates { shapes.wide_gates.len() } else { 0 };
    let wide = if narrow { shapes.wide.len() + wide_gates } else { 0 };
    let partial = |columns: usize, round| {
        (select::parts(shapes.tokens(), columns, round).0 as u128) * columns as u128
    };
    [
        ("states", states * step * bytes),
        ("gates", gates_bytes),
        ("wide states and gates", wide as u128 * step * 4),
        ("weights", 16 * (select::packed(shapes, fused, narrow).iter().sum::<usize>() as u128 + 1)),
        ("parts of d_r", partial(shapes.r().iter().product(), select::WEIGHT_GRAD) * 4),
        ("parts of d_b", partial(shapes.b().iter().product(), select::BIAS_GRAD) * 4),
        ("the forward pass's scratch memory", (rows + 2 * state + 1) * 4),
        (
            "the backward pass's scratch memory",
            (rows
                + 4 * state
                + (2 * shapes.recurrent) as u128 * batch * units
                + shapes.inner() as u128 * step
                + 1)
                * 4,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use flashrnn_core::{Lstm, Options};

    use super::*;

    /// The gates are the largest tensor here: 2^25 elements, or 2^24 in f32 if they are recomputed.
    #[test]
    fn a_tensor_as_large_as_the_limit_fits() {
        let gates = Problem::new(32, 1024, 1, 256);
        let recompute = gates.with(Options { save: Save::Recompute, ..gates.options });
        for (problem, element, bytes) in [
            (&gates, Dtype::F32, 4),
            (&gates, Dtype::F16, 2),
            (&gates, Dtype::Bf16, 2),
            (&recompute, Dtype::F16, 2),
        ] {
            let shapes = problem.shapes::<Lstm>().unwrap();
            let check = |max_bytes| check_limits(max_bytes, &shapes, problem, element, None);
            assert_eq!(check(bytes << 25), Ok(()));
            assert!(
                matches!(check((bytes << 25) - 1), Err(Error::Unsupported { what, .. }) if what.starts_with("gates of"))
            );
        }
    }

    #[test]
    fn long_loops_need_a_driver_that_runs_them() {
        let shapes = |head_dim| Problem::new(1, 1, 1, head_dim).shapes::<Lstm>().unwrap();
        assert_eq!(check_loops(&shapes(32768), || panic!("asked for no reason")), Ok(()));
        assert_eq!(check_loops(&shapes(32772), || Ok(true)), Ok(()));
        assert!(matches!(
            check_loops(&shapes(32772), || Ok(false)),
            Err(Error::Unsupported { .. })
        ));
    }
}
