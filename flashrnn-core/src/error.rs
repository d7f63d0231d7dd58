//! The one error type.

use std::sync::Arc;

/// What can go wrong. No public path panics on bad input, on a missing driver or library, or on a
/// lost device.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor has the wrong number of elements or the wrong dimensions.
    #[error("{tensor}: got shape {got:?}, wanted {want:?}")]
    Shape {
        /// The tensor's name in the operator.
        tensor: &'static str,
        /// The dimensions it has; one number where only the element count is known.
        got: Vec<usize>,
        /// The dimensions it must have.
        want: Vec<usize>,
    },
    /// A tensor holds a value it must not hold.
    #[error("{tensor}[{index}] is {got}, wanted {want}")]
    Value {
        /// The tensor's name in the operator.
        tensor: &'static str,
        /// The position of the value.
        index: usize,
        /// The value.
        got: String,
        /// What would do.
        want: String,
    },
    /// A size or an option of the problem makes no sense.
    #[error("{option}: got {got}, wanted {want}")]
    InvalidProblem {
        /// The name of the field.
        option: &'static str,
        /// Its value.
        got: String,
        /// What would do.
        want: &'static str,
    },
    /// A tensor that this call needs was not given, or one was given that it can't take: two that
    /// exclude each other, weights packed in another layout, memory of another device.
    #[error("{tensor}: {why}")]
    Argument {
        /// The tensor's name in the operator.
        tensor: &'static str,
        /// Why it is needed or refused.
        why: &'static str,
    },
    /// The backend can't do this problem, or can't be had in this program or on this machine. From
    /// `plan` and from what makes backends, never from a later call.
    #[error("backend {backend} does not support {what}: {why}")]
    Unsupported {
        /// The backend's name.
        backend: &'static str,
        /// What was asked for.
        what: String,
        /// Why it can't be had.
        why: String,
    },
    /// Memory ran out.
    #[error("out of memory: could not allocate {bytes} bytes")]
    OutOfMemory {
        /// The size of the allocation that failed.
        bytes: usize,
    },
    /// A kernel did not compile.
    #[error("kernel {kernel} did not compile:\n{log}")]
    Compile {
        /// The kernel's name.
        kernel: String,
        /// What the compiler said.
        log: String,
    },
    /// The device or its driver failed, or is missing.
    #[error(transparent)]
    Device(Failure),
}

impl Error {
    /// Makes an [`Error::Device`] that says what failed.
    #[must_use]
    pub fn device(what: impl Into<String>) -> Self {
        Self::Device(Failure { what: what.into(), cause: None })
    }

    /// Makes an [`Error::Device`] that says what was being done, and keeps the error that this met
    /// as its [source](std::error::Error::source).
    #[must_use]
    pub fn device_because(
        what: impl Into<String>,
        cause: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::Device(Failure { what: what.into(), cause: Some(Arc::new(cause)) })
    }
}

/// A failure of a device, its driver or a library: what failed in words and, as its source, the
/// other library's error if there is one.
#[derive(Debug, Clone, thiserror::Error)]
#[error("device: {what}")]
pub struct Failure {
    what: String,
    #[source]
    cause: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// Compares the words, those of the sources too.
impl PartialEq for Failure {
    fn eq(&self, other: &Self) -> bool {
        let cause = |failure: &Self| failure.cause.as_ref().map(ToString::to_string);
        self.what == other.what && cause(self) == cause(other)
    }
}

/// A result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
