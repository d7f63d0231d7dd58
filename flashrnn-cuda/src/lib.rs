//! flashrnn's recurrences on NVIDIA GPUs.
//!
//! A cell is traced, printed as CUDA C++ and compiled for the device at hand by NVRTC, at run time; the machine code is kept in
//! a folder of the user's ([`cache`]). Needed at run time are NVIDIA's driver (CUDA 12.3 or later), `libnvrtc` and `libcublas`,
//! and a GPU of compute capability 8.0 or later (Ampere). The crate builds where none of them is; what is missing is an
//! [`Error::Device`](flashrnn_core::Error::Device) that says how to get it.
//!
//! # Reading order
//! 1. [`Cuda`] (`device.rs`): a device and the stream that everything is enqueued on.
//! 2. [`Buffer`], [`View`], [`ViewMut`] (`memory.rs`): device memory, our own and the caller's.
//! 3. `library.rs`: whether the driver, NVRTC and cuBLAS are there.
//! 4. [`mod@compile`] and [`cache`]: from source to machine code.
//! 5. `launch.rs`: modules, kernels, graphs; `beside.rs`: a second stream; `blas.rs`: batched products.
//! 6. `programs.rs`: the kernel files with a cell, element types and tile; `select.rs` chooses the tile.
//! 7. `plan.rs`: from the public interface to the kernels; `time_loop.rs`: a pass's steps in graphs; `forward.rs` and `backward.rs`:
//!    its arguments (`call.rs`); `tokens.rs` and `weights.rs`: what is computed for all steps at once.

mod backward;
mod beside;
mod blas;
mod borrowed;
pub mod cache;
mod call;
mod choice;
pub mod compile;
mod context;
mod device;
mod disk_cache;
mod driver;
mod engine;
mod forward;
mod fused;
mod launch;
mod library;
mod memory;
mod packed;
mod plan;
mod pool;
#[doc(hidden)]
pub mod programs;
mod report;
mod scratch;
#[doc(hidden)]
pub mod select;
mod shared;
pub mod spread;
#[doc(hidden)]
pub mod testing;
#[cfg(test)]
mod tests;
mod time_loop;
mod tokens;
mod transfer;
mod weights;

pub use borrowed::{Borrowed, BorrowedMut};
pub use choice::KernelChoice;
pub use cudarc;
pub use device::{Cuda, Family, Waits};
pub use memory::{Buffer, View, ViewMut};
pub use packed::{Packed, PackedOrder};
pub use plan::CudaPlan;
pub use pool::MemoryUse;
pub use report::{Library, libraries};
