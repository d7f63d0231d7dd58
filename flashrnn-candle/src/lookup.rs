//! Gets parameters from a builder, with errors that say what was wanted.

use candle_core::{Error, Result, Tensor};
use candle_nn::{Init, VarBuilder};

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

/// Returns the name that a parameter has in the file or map behind `vb`.
pub(crate) fn full_name(vb: &VarBuilder, name: &str) -> String {
    let prefix = vb.prefix();
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}
