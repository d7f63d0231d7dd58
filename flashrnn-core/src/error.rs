//! The error type of every crate of flashrnn.

use std::sync::Arc;

/// Reports a failure of any flashrnn call. On bad input, a missing driver or library, or a lost
/// device, public functions return this instead of panicking. Exceptions, such as
/// [`Function::eval`](crate::trace::Function::eval), document their panics.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor has the wrong number of elements or the wrong dimensions.
    #[error("{tensor}: got shape {got:?}, wanted {want:?}")]
    Shape {
        /// The tensor's name in the operator.
        tensor: &'static str,
        /// Its dimensions; a single number if only the element count is known.
        got: Vec<usize>,
        /// The dimensions it must have.
        want: Vec<usize>,
    },
    /// A tensor holds an invalid value.
    #[error("{tensor}[{index}] is {got}, wanted {want}")]
    Value {
        /// The tensor's name in the operator.
        tensor: &'static str,
        /// The index of the value.
        index: usize,
        /// The value.
        got: String,
        /// The values that would be accepted.
        want: String,
    },
    /// A size or an option of the problem is invalid.
    #[error("{option}: got {got}, wanted {want}")]
    InvalidProblem {
        /// The name of the field.
        option: &'static str,
        /// Its value.
        got: String,
        /// The values that would be accepted.
        want: &'static str,
    },
    /// A required tensor is missing, or the call can't use a tensor that it was passed: one that
    /// excludes another, weights packed in another layout, or memory of another device.
    #[error("{tensor}: {why}")]
    Argument {
        /// The tensor's name in the operator.
        tensor: &'static str,
        /// Why it is needed or rejected.
        why: &'static str,
    },
    /// The backend does not support what was requested, or is not available in this program or on
    /// this machine. Returned by `plan`, by the constructors of backends, or by a method that only
    /// one backend has, never by a call of a plan.
    #[error("backend {backend} does not support {what}: {why}")]
    Unsupported {
        /// The backend's name.
        backend: &'static str,
        /// What was requested.
        what: String,
        /// Why it is not supported.
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
        /// The compiler's output.
        log: String,
    },
    /// The device or its driver failed, or is missing.
    #[error(transparent)]
    Device(Failure),
}

impl Error {
    /// Makes an [`Error::Device`] from a description of what failed.
    #[must_use]
    pub fn device(what: impl Into<String>) -> Self {
        Self::Device(Failure { what: what.into(), cause: None })
    }

    /// Makes an [`Error::Device`] from a description of what was being done, with `cause` as its
    /// [source](std::error::Error::source).
    #[must_use]
    pub fn device_because(
        what: impl Into<String>,
        cause: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::Device(Failure { what: what.into(), cause: Some(Arc::new(cause)) })
    }
}

/// Describes a failure of a device, its driver or a library. Its source is the underlying error, if
/// there is one.
#[derive(Debug, Clone, thiserror::Error)]
#[error("device: {what}")]
pub struct Failure {
    what: String,
    #[source]
    cause: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// Compares the messages of the failures and of their sources.
impl PartialEq for Failure {
    fn eq(&self, other: &Self) -> bool {
        let cause = |failure: &Self| failure.cause.as_ref().map(ToString::to_string);
        self.what == other.what && cause(self) == cause(other)
    }
}

/// A [`Result`](std::result::Result) whose error is [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
