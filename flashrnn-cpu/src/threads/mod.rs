//! The threads of a call, and the mode in which they compute.

pub(crate) mod pool;
pub(crate) mod subnormals;
pub(crate) mod workers;
