//! flashrnn's recurrences on any GPU, through WGSL and wgpu: Vulkan, Metal and DirectX 12.
//!
//! A cell is traced and printed as WGSL, and the driver compiles it with the kernels of `shaders/`,
//! whose README says how they work. Nothing beyond the GPU's driver is needed at run time; a
//! missing one is an [`Error::Device`](flashrnn_core::Error::Device).
//!
//! # Reading order
//! 1. [`Wgpu`] (`backend.rs`): an adapter's device and queue, opened or the caller's; `device.rs`:
//!    what plans share of them, and how their errors become ours.
//! 2. [`Buffer`], [`View`], [`ViewMut`] (`memory.rs`): device memory, our own and the caller's;
//!    `scratch.rs`: what calls work in.
//! 3. `programs.rs` and, for the kernels of many steps, `fused.rs`: the shader files with a cell
//!    and element types; `kernel.rs`: pipelines and dispatches; [`cache`] and the crate
//!    `flashrnn-gpu`: pipelines on disk.
//! 4. `select/`: which kernels, and sizes of tiles and parts, chosen by pure functions from an
//!    adapter's properties; [`KernelChoice`] (`choice.rs`): the same for people; `limits.rs`: what
//!    is refused; `probe.rs`: what the driver must first show.
//! 5. `plan.rs`: the public interface, with `operands.rs`, which checks what core can't see;
//!    `engine.rs`: a plan's kernels; `weights.rs`: R and b as they read them; `forward.rs`,
//!    `backward.rs`: the passes, with the arguments of `call.rs`.

#![deny(unsafe_code)]

mod backend;
mod call;
mod device;
mod engine;
mod kernels;
mod memory;
mod passes;
mod plan;
mod probe;
#[doc(hidden)]
pub mod programs;
mod select;
#[doc(hidden)]
pub mod testing;

pub use backend::{Wgpu, adapters};
pub use flashrnn_gpu::{Family, KernelChoice};
pub use kernels::cache;
pub use memory::{Buffer, View, ViewMut};
pub use passes::pack::{Packed, PackedOrder};
pub use plan::WgpuPlan;
pub use wgpu;
