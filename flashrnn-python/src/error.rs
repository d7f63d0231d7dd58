//! The library's errors as Python exceptions.

use flashrnn_core::Error;
use pyo3::PyErr;
use pyo3::exceptions::{PyMemoryError, PyNotImplementedError, PyRuntimeError, PyValueError};

/// Converts an error to the Python exception of its kind, with the library's message.
pub(crate) fn exception(error: Error) -> PyErr {
    let message = with_sources(&error);
    match error {
        Error::Shape { .. }
        | Error::Value { .. }
        | Error::InvalidProblem { .. }
        | Error::Argument { .. } => PyValueError::new_err(message),
        Error::Unsupported { .. } => PyNotImplementedError::new_err(message),
        Error::OutOfMemory { .. } => PyMemoryError::new_err(message),
        _ => PyRuntimeError::new_err(message),
    }
}

/// Joins the messages of an error and its sources.
fn with_sources(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", with_sources(source)),
        None => error.to_string(),
    }
}
