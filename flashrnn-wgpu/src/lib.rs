//! flashrnn's recurrences on any GPU, through WGSL and wgpu: Vulkan, Metal and DirectX 12.
//!
//! A cell is traced and printed as WGSL, and the driver compiles it together with the kernels of
//! `shaders/`, whose README describes them. Only the GPU's driver is needed at run time; if it is
//! missing, the error is [`Error::Device`](flashrnn_core::Error::Device).
//!
//! # Reading order
//! 1. [`Wgpu`] (`backend.rs`) is the handle of a device (`device.rs`) and of everything made on it.
//! 2. [`Buffer`], [`View`], [`ViewMut`] (`memory/`): device memory of this crate and of the caller,
//!    copies to and from the host, scratch memory, and checks of the tensors of a call.
//! 3. `programs/` joins shader files for a cell, element types and tile sizes, with the arguments
//!    of `call.rs`. Templates are expanded by `programs/template.rs`.
//! 4. `kernels/` compiles programs once per device, keeps pipelines on disk ([`cache`]), and
//!    records dispatches (`recorder.rs`). `probe.rs` runs kernels that test the driver.
//! 5. `select/` chooses kernels, tiles and parts from the properties of an adapter, by pure
//!    functions. `select/choice.rs` describes the choice as a [`KernelChoice`], `select/limits.rs`
//!    refuses problems that the device cannot hold.
//! 6. `plan.rs` checks calls and hands them to `engine.rs`, which holds a plan's kernels and sizes.
//!    `passes/` implements the passes. `layout.rs` defines the layout of their scratch memory, and
//!    `packed.rs` that of the weights.

#![deny(unsafe_code)]

mod backend;
mod call;
mod device;
mod engine;
mod kernels;
mod layout;
mod memory;
mod packed;
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
pub use packed::{Packed, PackedOrder};
pub use plan::WgpuPlan;
pub use wgpu;
