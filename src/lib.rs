//! LSTM, GRU, Elman, sLSTM and your own recurrent cells, as one differentiable multi-head operator.
//!
//! ```text
//! g_t = R s⁰_{t-1} + x_t + b            s_t = P(s_{t-1}, g_t)
//! ```
//!
//! This crate re-exports `flashrnn-core` (cells, problems, the backend traits, the f64 reference)
//! and the backends selected by its features.
//!
//! | feature | backend | default |
//! |---|---|---|
//! | `cpu` | [`Cpu`]: SIMD and threads | yes |
//! | `ndarray` | [`Cpu`] with arrays of the crate `ndarray`, re-exported as `cpu::ndarray` | no |
//! | `cuda` | `Cuda`: NVIDIA GPUs, with kernels compiled when a plan is made | no |
//! | `wgpu` | `Wgpu`: any GPU, with WGSL shaders on Vulkan, Metal or DirectX 12 | no |
//!
//! ```
//! use flashrnn::prelude::*;
//!
//! # fn main() -> flashrnn::Result<()> {
//! let (batch, time, heads, head_dim) = (2, 100, 4, 32);
//! let units = heads * head_dim;
//! let plan = Cpu::new().plan(&Lstm, &Problem::new(batch, time, heads, head_dim))?;
//! let (r, b) = (vec![0.1_f32; 4 * units * head_dim], vec![0.0; 4 * units]);
//! let weights = plan.pack(&r, &b)?; // r [Gr, N, D_out, D_in], b [G, N, D]
//!
//! // The forward pass of training keeps the states and what the backward pass needs.
//! let wx = vec![0.5_f32; batch * time * 4 * units]; // [B, T, Gx, N, D]
//! let mut states = vec![0.0; 2 * batch * time * units]; // [S, B, T, N, D]; h comes first
//! let mut saved = plan.saved()?;
//! plan.forward(Forward {
//!     states: Some(&mut states),
//!     saved: Some(saved.view_mut()),
//!     ..Forward::new(&weights, &wx)
//! })?;
//!
//! // The backward pass computes the gradients of the sum of all h.
//! let d_h = vec![1.0; batch * time * units]; // [B, T, N, D]
//! let (mut d_wx, mut d_r) = (vec![0.0; wx.len()], vec![0.0; 4 * units * head_dim]);
//! plan.backward(Backward {
//!     d_h: Some(&d_h),
//!     d_r: Some(&mut d_r),
//!     ..Backward::new(&weights, &states, saved.view(), &mut d_wx)
//! })?;
//! assert!(d_r.iter().all(|d| d.is_finite() && *d != 0.0));
//! # Ok(())
//! # }
//! ```
//!
//! # GPUs
//! Device memory is a `cuda::Buffer`, and calls take its `cuda::View`s and `cuda::ViewMut`s. The
//! crate `cudarc`, whose streams and memory the backend also accepts, is re-exported as
//! `cuda::cudarc`. The feature `cuda` builds without an installation of CUDA; the driver, NVRTC and
//! cuBLAS are loaded at run time. The backend `Wgpu` is called the same way, with `Buffer`, `View`
//! and `ViewMut` in `wgpu`.
//!
#![cfg_attr(feature = "cuda", doc = "```no_run")]
#![cfg_attr(not(feature = "cuda"), doc = "```ignore")]
//! use flashrnn::Cuda;
//! use flashrnn::prelude::*;
//!
//! # fn main() -> flashrnn::Result<()> {
//! let cuda = Cuda::new()?;
//! let plan = cuda.plan(&Lstm, &Problem::new(16, 1024, 12, 64))?;
//! let wx = cuda.upload(&vec![bf16::ONE; 16 * 1024 * 4 * 12 * 64])?; // [B, T, Gx, N, D]
//! let (r, b) = (cuda.alloc::<bf16>(4 * 12 * 64 * 64)?, cuda.alloc(4 * 12 * 64)?);
//! let weights = plan.pack(r.view(), b.view())?;
//! let mut h = cuda.alloc(16 * 1024 * 12 * 64)?; // [B, T, N, D]
//! let call = Forward::new(&weights, wx.view());
//! plan.forward(Forward { h: Some(h.view_mut()), ..call })?; // enqueues the call
//! let h: Vec<bf16> = cuda.download(h.view())?; // waits for it
//! # Ok(())
//! # }
//! ```
//!
//! # Streaming, and choosing a backend at run time
//! [`Plan::step`] advances a state, initially zeros, by one time step. [`AnyBackend`] is a backend
//! selected by its name. Its plans (`any::AnyPlan`) and buffers have one type for all backends, so
//! that a struct can contain them.
//!
//! ```
//! use flashrnn::prelude::*;
//!
//! # fn main() -> flashrnn::Result<()> {
//! let backend = AnyBackend::new("cpu".parse()?)?; // or auto, cuda, wgpu
//! let plan = backend.plan::<f32, f32, _>(&Lstm, &Problem::new(1, 1, 4, 32))?;
//! let (r, b) = (backend.alloc(4 * 4 * 32 * 32)?, backend.alloc(4 * 4 * 32)?);
//! let weights = plan.pack(backend.view(&r), backend.view(&b))?;
//! let mut state = backend.alloc(2 * 4 * 32)?; // [S, B, N, D]: h and c
//! let mut h = backend.alloc(4 * 32)?; // [B, N, D]
//! for _ in 0..3 {
//!     let wx = backend.upload(&[0.5; 4 * 4 * 32])?; // [B, Gx, N, D]
//!     let (state, h) = (backend.view_mut(&mut state), Some(backend.view_mut(&mut h)));
//!     plan.step(Step { weights: &weights, wx: backend.view(&wx), state, h })?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Next steps
//! Start with [`Problem`] (sizes and options) and [`Plan`] (the calls). See
//! `examples/custom_cell.rs` for a [`Cell`] of your own, and the crate `flashrnn-candle` for
//! training with candle.

#[cfg(any(feature = "cpu", feature = "cuda", feature = "wgpu"))]
pub mod any;

#[cfg(any(feature = "cpu", feature = "cuda", feature = "wgpu"))]
pub use any::{AnyBackend, BackendName};
pub use flashrnn_core::*;

#[cfg(feature = "cpu")]
pub use flashrnn_cpu as cpu;
#[cfg(feature = "cpu")]
pub use flashrnn_cpu::Cpu;
#[cfg(feature = "cuda")]
pub use flashrnn_cuda as cuda;
#[cfg(feature = "cuda")]
pub use flashrnn_cuda::Cuda;
#[cfg(feature = "wgpu")]
pub use flashrnn_wgpu as wgpu;
#[cfg(feature = "wgpu")]
pub use flashrnn_wgpu::Wgpu;

/// Re-exports what most programs use: `use flashrnn::prelude::*`.
pub mod prelude {
    #[cfg(feature = "cpu")]
    pub use crate::Cpu;
    #[cfg(feature = "cuda")]
    pub use crate::Cuda;
    #[cfg(feature = "wgpu")]
    pub use crate::Wgpu;
    #[cfg(any(feature = "cpu", feature = "cuda", feature = "wgpu"))]
    pub use crate::{AnyBackend, BackendName};
    pub use flashrnn_core::prelude::*;
}
