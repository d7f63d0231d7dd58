//! flashrnn
pub use flashrnn_core::*;
#[cfg(feature = "cpu")]
pub use flashrnn_cpu::Cpu;
