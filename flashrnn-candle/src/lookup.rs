//! Gets parameters from a builder, with errors that say what was wanted.

use candle_core::{Error, Result, Tensor};
use candle_nn::{Init, VarBuilder};

use crate::RnnConfig;

/// Initialises a matrix with `inputs` columns: uniform in ±1/√inputs.
pub(crate) fn uniform(inputs: usize) -> Init {
    let bound = 1.0 / (inputs as f64).sqrt();
    Init::Uniform { lo: -bound, up: bound }
}

/// Gets a parameter from `vb`. The error says its full name and shape.
pub(crate) fn get(vb: &VarBuilder, shape: &[usize], name: &str, init: Init) -> Result<Tensor> {
    vb.get_with_hints(shape, name, init).map_err(|error| {
        let name = full_name(vb, name);
        let reason = reason(error);
        Error::msg(format!("parameter {name}, wanted with shape {shape:?}: {reason}"))
    })
}

/// Returns an error without its backtrace, to be part of another error's message.
pub(crate) fn reason(error: Error) -> Error {
    match error {
        Error::WithBacktrace { inner, .. } => reason(*inner),
        error => error,
    }
}

/// Checks that `vb` has no parameters of a module that `config` leaves out: more layers, a second
/// direction or biases. `weight` and `bias` are parameters' names without their suffix.
pub(crate) fn check_leftover(
    config: &RnnConfig,
    vb: &VarBuilder,
    weight: &str,
    bias: &str,
) -> Result<()> {
    let layers = config.layers;
    check_absent(vb, &format!("{weight}_l{layers}"), &format!("layers is {layers}"))?;
    if !config.bidirectional {
        check_absent(vb, &format!("{weight}_l0_reverse"), "bidirectional is false")?;
    }
    if !config.bias {
        check_absent(vb, &format!("{bias}_l0"), "bias is false")?;
    }
    Ok(())
}

/// Checks that `vb` has no parameter `name`; `why` explains the error.
pub(crate) fn check_absent(vb: &VarBuilder, name: &str, why: &str) -> Result<()> {
    // `VarBuilder::zeros` has parameters of every name.
    if vb.contains_tensor(name) && !vb.contains_tensor("") {
        let name = full_name(vb, name);
        return Err(Error::msg(format!("found parameter {name}, but {why}")));
    }
    Ok(())
}

/// Returns the name that a parameter has in the file or map behind `vb`.
fn full_name(vb: &VarBuilder, name: &str) -> String {
    let prefix = vb.prefix();
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}
