//! Compilation, the disk cache and launches.

pub mod cache;
pub mod compile;
pub(crate) mod launch;
