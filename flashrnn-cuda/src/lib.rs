//! The CUDA backend of flashrnn.
//!
//! A cell is traced and printed as CUDA C++. When a plan is made, NVRTC compiles it together with
//! the kernels in the folder `kernels`. The machine code is cached on disk ([`cache`]).
//!
//! Building the crate needs no CUDA. Running it needs a GPU of compute capability 8.0 (Ampere) or
//! later, NVIDIA's driver for CUDA 12.3 or later, NVRTC and cuBLAS. If one of them is missing, an
//! [`Error::Device`](flashrnn_core::Error::Device) says how to install it.
//!
//! # Streams, memory and contexts
//! A [`Cuda`] enqueues on one stream. [`Cuda::with_stream`] and [`Cuda::with_new_stream`] make
//! handles of other streams that share its context, loaded kernels and memory pool. Buffers, packed
//! weights and saved tensors are valid only on the stream on which they were made; plans of other
//! streams refuse them with [`Error::Argument`](flashrnn_core::Error::Argument). Weights that
//! [`CudaPlan::pack_into`] packs into the caller's memory serve all streams. Every call restores
//! the CUDA context that was current on the caller's thread.
//!
//! A call takes its scratch memory from the pool, in stream order, or uses the workspace passed to
//! it. A call with a workspace allocates nothing, with three exceptions that occur once: the first
//! backward pass of a context creates its cuBLAS handle, the first call of a time loop on a stream
//! records its graph, and the first call with less aligned tensors loads fused kernels for them.
//!
//! The caller may capture calls in a graph of its own, the first calls of a plan included, and
//! replay it beside other work. The context should have run a backward pass before, because
//! creating the cuBLAS handle may not be possible then. Without a workspace, the scratch memory
//! becomes a part of the graph.
//!
//! [`Backend::trim`](flashrnn_core::Backend::trim) returns the pool's unused memory to the GPU.
//!
//! # Reading order
//! From the driver up to the public interface:
//!
//! 1. `driver/`: the driver's results as errors; loading the libraries; the current context;
//!    streams and events; the memory pool.
//! 2. `select/`: pure functions that choose the kernels, the tiles of per-step kernels and the
//!    layouts of fused kernels. [`KernelChoice`] describes the result.
//! 3. `kernels/`, first [`mod@compile`], which calls NVRTC, and [`cache`], which keeps the result.
//! 4. `device/`: a stream, and the context and cuBLAS handle that it shares with other streams.
//! 5. `memory/`: [`Buffer`], [`View`] and [`ViewMut`], copies to and from the GPU, scratch memory.
//! 6. `kernels/`, the rest: modules, launches, graphs, and the store of all kernels.
//! 7. `call.rs`: the arguments of the kernels. `programs/`: the kernel sources, each combined
//!    with a cell, element types and a layout.
//! 8. `passes/`: the forward and the backward pass, fused (`fused.rs`), over the whole GPU
//!    (`grid.rs`) or with one launch per step in graphs (`time_loop.rs`); the parts of the backward pass that process all tokens
//!    at once (`recompute.rs`, `weight_grad.rs`); packing the weights (`pack.rs`).
//! 9. `backend.rs`: [`Cuda`]. `packed.rs`: packed weights. `engine.rs`: the kernels of a plan.
//!    `plan.rs`: the public interface, and the checks of every call.

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
#[doc(hidden)]
pub use backend::Limits;
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
