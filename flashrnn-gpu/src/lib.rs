//! The host code that flashrnn's CUDA and wgpu backends share.
//!
//! - [`Family`] and [`KernelChoice`]: which kernels a plan is asked for, and which it runs.
//! - [`check_dtypes`]: the element types that a GPU computes in.
//! - [`arguments!`]: kernel arguments, declared once in Rust and printed as CUDA C++ and WGSL.
//! - [`disk_cache`]: compiled programs, kept between processes.
//! - [`device_methods!`]: the methods of `Backend` that only forward to the device.
//! - [`lock()`], and [`or_skip`] for tests that need a device.

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
