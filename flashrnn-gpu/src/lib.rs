//! The host code that flashrnn's CUDA and wgpu backends share.
//!
//! - [`Family`] and [`KernelChoice`]: the kernels that a plan should use, and those that it uses.
//! - [`check_dtypes`]: the element types that GPU backends support.
//! - [`arguments!`]: kernel arguments, declared once in Rust and printed as CUDA C++ or WGSL.
//! - [`disk_cache`]: compiled programs, kept on disk between processes.
//! - [`device_methods!`]: the methods of `Backend` that only forward to the device.
//! - [`lock()`] for mutexes, and [`or_skip`] for tests that need a device.

pub mod arguments;
mod backend;
pub mod disk_cache;
mod kernel_choice;
mod lock;
mod testing;

pub use backend::{DTYPES, check_dtypes};
pub use kernel_choice::{Family, KernelChoice};
pub use lock::lock;
pub use testing::or_skip;

#[doc(hidden)]
pub use bytemuck;
#[doc(hidden)]
pub use flashrnn_core;
