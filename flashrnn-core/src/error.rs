//! The one error type.

/// What can go wrong. No public path panics on bad input, on a missing driver or library, or on a lost device.
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
    /// A tensor that this call needs was not given, or one was given that it can't take: two that exclude each other,
    /// weights packed in another layout, memory of another device.
    #[error("{tensor}: {why}")]
    Argument {
        /// The tensor's name in the operator.
        tensor: &'static str,
        /// Why it is needed or refused.
        why: &'static str,
    },
    /// The backend can't do this problem. Only ever from `plan`.
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
    #[error("device: {0}")]
    Device(String),
}

/// A result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
