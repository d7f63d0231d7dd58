//! The CUDA backend of flashrnn.
//!
//! A cell is traced and printed as CUDA C++. NVRTC compiles it for the GPU with the kernels in the
//! folder `kernels`, when a plan is made, and the machine code is kept on disk ([`cache`]).
//!
//! Building the crate needs no CUDA. Running needs a GPU of compute capability 8.0 (Ampere) or
//! later, NVIDIA's driver for CUDA 12.3 or later, NVRTC and cuBLAS. If one of them is missing, an
//! [`Error::Device`](flashrnn_core::Error::Device) says how to get it.
//!
//! # Streams, memory and contexts
//! A [`Cuda`] enqueues on one stream. [`Cuda::with_stream`] and [`Cuda::with_new_stream`] make
//! handles of more streams, which share the context, the loaded kernels and the memory pool. A
//! buffer, packed weights and what a forward pass saved are valid on the stream they were made on;
//! plans of other streams refuse them with [`Error::Argument`](flashrnn_core::Error::Argument).
//! Every call restores the CUDA context that was current on the caller's thread.
//!
//! A call takes its scratch memory from the pool, in the order of the stream, or uses the workspace
//! that is passed to it. With a workspace it allocates nothing, with two exceptions that happen
//! once: the first backward pass of a context starts cuBLAS, and the first call of a time loop on a
//! stream records its graph. [`Backend::trim`](flashrnn_core::Backend::trim) returns the pool's
//! memory to the GPU.
//!
//! # Reading order
//! From the driver up to the public interface:
//!
//! 1. `driver/`: results of the driver as errors; the libraries and their functions; the current
//!    context; streams and events; the memory pool.
//! 2. `select/`: pure functions that choose the kernels: the tile of a kernel per step, the layout
//!    of a fused kernel. [`KernelChoice`] describes them.
//! 3. `kernels/`, its first half: [`mod@compile`] calls NVRTC, [`cache`] keeps the result.
//! 4. `device/`: a stream ([`Cuda`] has one), and the context it shares with other streams, with
//!    cuBLAS in it.
//! 5. `memory/`: [`Buffer`], [`View`] and [`ViewMut`], copies to and from the GPU, scratch memory.
//! 6. `kernels/`, its second half: modules, launches and graphs, and the store of all kernels.
//! 7. `call.rs`: the arguments of the kernels; `programs.rs`: the kernel files joined with a cell,
//!    element types and a layout.
//! 8. `passes/`: the forward and the backward pass, fused (`fused.rs`) or with one launch per step
//!    in graphs (`time_loop.rs`); what the backward pass does for all tokens at once
//!    (`recompute.rs`, `weight_grad.rs`); packing the weights (`pack.rs`).
//! 9. `backend.rs`: [`Cuda`]; `engine.rs`: the kernels of a plan; `plan.rs`: the public interface,
//!    with the checks of every call.

mod backend;
mod call;

mod device;
mod driver;
mod engine;
mod kernels;
mod memory;
mod packed;
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
pub use packed::{Packed, PackedOrder};
pub use plan::CudaPlan;
#[doc(hidden)]
pub use programs::Waits;
pub use report::{Library, libraries};
