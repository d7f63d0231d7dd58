//! flashrnn's recurrences on NVIDIA GPUs.
//!
//! A cell is traced, printed as CUDA C++ and compiled for the device at hand by NVRTC, at run time;
//! the machine code is kept in a folder of the user's ([`cache`]). Needed at run time are NVIDIA's
//! driver (CUDA 12.3 or later), `libnvrtc` and `libcublas`, and a GPU of compute capability 8.0 or
//! later (Ampere). The crate builds where none of them is; what is missing is an
//! [`Error::Device`](flashrnn_core::Error::Device) that says how to get it.
//!
//! # Streams, memory and contexts
//! A [`Cuda`] enqueues on one stream. Handles of more streams come from [`Cuda::with_stream`] and
//! [`Cuda::with_new_stream`]: they share the context, all compiled kernels and the pool of memory,
//! so that a second stream compiles and loads nothing again. A buffer, packed weights and what a
//! forward pass saved are valid on the stream they were made on, and a call of another one's plan
//! refuses them with [`Error::Argument`](flashrnn_core::Error::Argument). Every call leaves the
//! CUDA context current that the caller had made so.
//!
//! A call takes its scratch memory from a pool in the order of the stream, or uses the workspace
//! that it is given; then it allocates nothing, but for what is made once: the first backward pass
//! of a context starts cuBLAS, and the first call of a time loop on a stream records its graph.
//! [`Backend::trim`](flashrnn_core::Backend::trim) gives the pool's memory back.
//!
//! # Reading order
//! 1. [`Cuda`] (`device.rs`), a handle: a stream, and what it shares with the device's other
//!    streams (`shared.rs`). `context.rs` enters and leaves the context, `driver.rs` turns the
//!    driver's results into errors.
//! 2. [`Buffer`], [`View`], [`ViewMut`] (`memory.rs`), filled and read by `transfer.rs`; the pool
//!    they come from (`pool.rs`); cudarc's slices (`borrowed.rs`).
//! 3. `library.rs` checks that the driver, NVRTC and cuBLAS are there with every function that is
//!    called.
//! 4. [`mod@compile`] and [`cache`] lead from source to machine code, which the crate
//!    `flashrnn-gpu` keeps.
//! 5. `launch.rs` has modules, kernels and graphs, `beside.rs` a second stream, `blas.rs` batched
//!    products.
//! 6. `programs.rs` joins the kernel files with a cell, element types and tile. `select.rs` chooses
//!    the tile of a kernel per step, `select/fused.rs` the layout of a fused kernel; [`KernelChoice`]
//!    (`choice.rs`) tells people which.
//! 7. `plan.rs` checks calls and hands them to the `engine.rs`. `forward.rs` and `backward.rs` fill
//!    the arguments (`call.rs`) of one fused kernel (`fused.rs`) or of a kernel per step in graphs
//!    (`time_loop.rs`); `scratch.rs` cuts their scratch memory; `packed.rs`, `tokens.rs` and
//!    `weights.rs` compute what is done for all steps at once.

mod backend;
mod call;

mod device;
mod driver;
mod engine;
mod kernels;
mod memory;

mod passes;
mod plan;
#[doc(hidden)]
pub mod programs;
mod report;
#[doc(hidden)]
pub mod select;
#[doc(hidden)]
pub mod testing;
#[cfg(test)]
mod tests;

pub use backend::Cuda;
pub use cudarc;
pub use driver::pool::MemoryUse;
pub use flashrnn_gpu::{Family, KernelChoice};
pub use kernels::{cache, compile};
pub use memory::borrowed::{Borrowed, BorrowedMut};
pub use memory::{Buffer, View, ViewMut};
pub use passes::pack::{Packed, PackedOrder};
pub use plan::CudaPlan;
#[doc(hidden)]
pub use programs::Waits;
pub use report::{Library, libraries};
