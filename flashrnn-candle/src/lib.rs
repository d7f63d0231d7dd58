//! flashrnn's recurrences in [candle](candle_core), on the CPU and on CUDA devices.
//!
//! [`Lstm`], [`Gru`], [`Elman`] and [`Slstm`] are modules with parameters, of any number of layers
//! in one or two directions, trained by candle's optimisers. They are names for [`Rnn`], the module
//! of any cell. [`Rnn::from_torch`] makes modules over PyTorch's parameters, and [`xlstm`] converts
//! those of the Python package xlstm. [`Recurrence`] is the operator alone, a function of tensors.
//! [`FrozenRnn`] and [`Frozen`] are for inference, with weights packed once.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::{AdamW, Module, Optimizer, VarBuilder, VarMap};
//! use flashrnn_candle::{Lstm, RnnConfig, SequenceOptions};
//!
//! # fn main() -> candle_core::Result<()> {
//! let vars = VarMap::new();
//! let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
//! let lstm = Lstm::new(1, 16, RnnConfig::default(), vb.pp("lstm"))?;
//! let head = candle_nn::linear(16, 1, vb.pp("head"))?;
//!
//! // Predicts the next value of a sine, in rows of 24 and 12 steps.
//! let wave = |i: u32| (i as f32 * 0.5).sin();
//! let shape = (2, 24, 1); // [B, T, I]
//! let x = Tensor::from_iter((0..48).map(wave), &Device::Cpu)?.reshape(shape)?;
//! let next = Tensor::from_iter((1..49).map(wave), &Device::Cpu)?.reshape(shape)?;
//! let mask = (0..48).map(|i| f32::from(i < 36));
//! let mask = Tensor::from_iter(mask, &Device::Cpu)?.reshape(shape)?;
//! let lengths = Tensor::new(&[24u32, 12], &Device::Cpu)?;
//! let options = SequenceOptions { lengths: Some(&lengths), ..Default::default() };
//!
//! let mut optimiser = AdamW::new_lr(vars.all_vars(), 0.02)?;
//! let mut losses = vec![];
//! for _ in 0..30 {
//!     let h = lstm.forward(&x, &options, true)?.h; // [B, T, N·D]
//!     let error = ((head.forward(&h)? - &next)? * &mask)?;
//!     let loss = error.sqr()?.mean_all()?;
//!     optimiser.backward_step(&loss)?;
//!     losses.push(loss.to_scalar::<f32>()?);
//! }
//! assert!(losses[29] < 0.5 * losses[0]);
//! # Ok(())
//! # }
//! ```
//!
//! # The operator alone
//!
//! ```
//! use candle_core::{DType, Device, Tensor, Var};
//! use flashrnn::{Options, Slstm};
//! use flashrnn_candle::{Recurrence, SequenceOptions};
//!
//! # fn main() -> candle_core::Result<()> {
//! let (batch, time, heads, head_dim) = (2, 7, 3, 4);
//! // wx: [B, T, Gx, N, D], r: [Gr, N, D_out, D_in], b: [G, N, D]
//! let wx = Var::randn(0f32, 1.0, (batch, time, 4, heads, head_dim), &Device::Cpu)?;
//! let r = Var::randn(0f32, 0.3, (4, heads, head_dim, head_dim), &Device::Cpu)?;
//! let b = Var::zeros((4, heads, head_dim), DType::F32, &Device::Cpu)?;
//!
//! let options = Options { forward_clip: Some(0.9), ..Options::default() };
//! let recurrence = Recurrence::new(Slstm).with(options);
//! let out = recurrence.forward(&wx, &r, &b, &SequenceOptions::default())?;
//! assert_eq!(out.h.dims(), [batch, time, heads, head_dim]);
//! assert_eq!(out.last.dims(), [4, batch, heads, head_dim]); // [S, B, N, D]
//!
//! // The final state is the next chunk's initial state, and gradients flow through it.
//! let options = SequenceOptions { s0: Some(&out.last), ..Default::default() };
//! let next = recurrence.forward(&wx, &r, &b, &options)?;
//! let grads = next.h.sqr()?.sum_all()?.backward()?;
//! assert_eq!(grads.get(&r).map(Tensor::dims), Some(r.dims()));
//! # Ok(())
//! # }
//! ```
//!
//! # Element types
//! `wx`, h and the states are f32, f64, f16 or bf16. `r` and `b` have the same type, or may be f32
//! if `wx` is 16 bits. The initial and final states are f32, or f64 if `wx` is f64. With 16-bit
//! states, a sequence split in chunks would yield other results than the whole one. A module's
//! parameters have the type of `x`, or may be f32 if `x` is 16 bits; their gradients are then f32.
//!
//! # Variables changed in place
//! candle's variables may change in place through any of their aliases, without notice. Therefore
//! every call of [`Rnn::forward`] and [`Recurrence::forward`] packs the weights with their current
//! values. Only [`FrozenRnn`] and [`Frozen`] keep old values.
//!
//! Between a forward pass and its backward pass, the operation keeps its own copies of the weights
//! and of `s0`. Overwriting these tensors, as a stateful model does, therefore does not affect the
//! gradients. With [`Save::Recompute`], however, the backward pass of a [`Recurrence`] reads `wx`
//! again, and the backward pass of a module always reads `x` and `w`. If such a tensor was changed
//! in place, the backward pass returns an error, provided that it detects the change. It compares
//! up to 64 elements of each tensor, which detects an optimiser step or `Var::set`, but may miss a
//! change of a few elements. On CUDA devices it detects nothing, because it would have to wait for
//! the GPU. candle's own operations do not check.
//!
//! # Gradients
//! Any number of forward passes may precede a backward pass, and a graph may be differentiated more
//! than once.
//!
//! Second derivatives are not supported. If a loss is computed from the gradient of a variable, its
//! `backward` returns an error; to use the gradient as a constant, `detach` it. This check costs
//! memory: the gradient of a variable does not keep the forward pass alive, but it does keep the
//! terms that candle summed, each as large as the gradient. `detach` gradients that you keep or
//! accumulate.
//!
//! # Memory and copies
//! A layer is one operation in candle's graph, whose inputs are `x`, `w` and one tensor with `s0`,
//! r and b; [`Recurrence::forward`] is one whose input is `wx` instead of `x` and `w`. Its output
//! is the final state. h (or all states) is the output of a second operation that depends on the
//! final state.
//!
//! - Between forward and backward, the operation keeps the packed weights, the states of every step
//!   (`S·B·T·N·D` elements) and what [`Save`] selects: with `Gates` all gates
//!   (`G·B·T·N·D` elements), with `Recompute` `wx` instead, and in both cases wide values for
//!   16-bit tensors. h is the first of the states and shares their memory, so a tensor of h that
//!   was computed from variables keeps all states in memory, even if it is detached. Nothing is
//!   kept if no input depends on a variable, and h then has its own memory.
//! - [`Output::last`] has its own memory. [`Recurrence::all_states`] is off by default, because
//!   inference then writes S times as much.
//! - candle adds every gradient to a tensor of zeros, which takes two passes over memory of the
//!   size of each input that depends on a variable.
//!
//! # GPUs
//! With the feature `candle-cuda`, everything in this crate works on tensors of candle's CUDA
//! devices, in candle's memory and in order with candle's other operations on the device. Nothing
//! is copied to the host, and no call waits for the GPU. [`Rnn::on`] and [`Recurrence::on`] have no
//! effect on such tensors. `Device::new_cuda_with_stream` makes a device with a stream that
//! flashrnn uses too. `Device::new_cuda` makes one on CUDA's per-thread stream, beside which
//! flashrnn uses a stream of its own; every pass of a layer then takes about 0.02 ms longer.
//!
//! - Element types are f32, f16 and bf16. An f64 tensor is an error.
//! - Lengths may be of any integer type but I16 and I32, which candle can't convert on a GPU. They
//!   are clamped to 0 to T, since checking them would wait for the GPU.
//! - All tensors of a call are on the same [`Device`](candle_core::Device), a clone of one value.
//!
//! The feature links the program to the driver (libcuda), cuBLAS, cuRAND, the CUDA runtime and
//! NVRTC, as candle's own feature `cuda` does, so the program starts only where they are installed.
//! Building needs nvcc; `scripts/with_cuda_toolkit.sh` in the repository builds without an
//! installation of CUDA.
//!
//! Without that feature, tensors remain on candle's CPU device, and [`Rnn::on`] and
//! [`Recurrence::on`] take any [`AnyBackend`]; the features `cuda` and `wgpu` add GPU backends. A
//! forward pass copies wx, the weights and s0 to the GPU and the output back, and waits for it. A
//! backward pass copies the gradient of the output to the GPU (with `Recompute` also wx), and d_wx,
//! the weights' gradients and d_s0 back. Saved tensors stay on the GPU. On the CPU, the operation
//! works directly on candle's memory.

mod call;
mod config;
mod frozen;
mod frozen_layer;
mod frozen_rnn;
#[cfg(feature = "candle-cuda")]
mod gpu;
mod graph;
mod join;
mod layer;
mod lookup;
mod parameters;
mod pass;
mod place;
mod plans;
mod product;
mod recurrence;
mod rnn;
mod sequence;
mod stack;
mod steps;
mod storage;
mod torch;
mod variables;
pub mod xlstm;

pub use config::RnnConfig;
pub use frozen::{Frozen, State};
pub use frozen_rnn::{FrozenRnn, RnnState};
pub use parameters::Weights;
pub use recurrence::Recurrence;
pub use rnn::{Elman, Gru, Lstm, Rnn, Slstm};
pub use sequence::{Output, SequenceOptions};
pub use stack::RnnOutput;
pub use steps::StepState;
pub use torch::{FromTorch, TorchGate};
pub use variables::load_variables;

#[doc(no_inline)]
pub use flashrnn::{AnyBackend, Layout, Options, Save};

/// Holds the examples of the workspace's README and of this crate's, which run as tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
#[doc = include_str!("../README.md")]
struct Readmes;
