//! flashrnn's recurrences as a differentiable [candle](candle_core) operation on tensors in the
//! CPU's memory.
//!
//! [`RnnLayer`] is a layer with parameters, trained by candle's optimisers; [`Rnn`] is the operator
//! alone, on tensors; [`FrozenLayer`] and [`Frozen`] are the same two for inference, with weights
//! packed once. [`RnnLayer::from_torch`] reads, or makes, the parameters of PyTorch's `nn.LSTM`,
//! `nn.GRU` and `nn.RNN`.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::{AdamW, Module, Optimizer, VarBuilder, VarMap};
//! use flashrnn::Lstm;
//! use flashrnn_candle::{LayerSize, Rnn, RnnLayer, SequenceOptions};
//!
//! # fn main() -> candle_core::Result<()> {
//! let vars = VarMap::new();
//! let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
//! let layer = RnnLayer::new(Rnn::new(Lstm), LayerSize { input: 1, heads: 2, head_dim: 8 }, vb.pp("rnn"))?;
//! let head = candle_nn::linear(16, 1, vb.pp("head"))?;
//!
//! // Predict the next value of a sine, in rows of 24 and 12 steps.
//! let wave = |i: u32| (i as f32 * 0.5).sin();
//! let x = Tensor::from_iter((0..48).map(wave), &Device::Cpu)?.reshape((2, 24, 1))?; // [B, T, I]
//! let next = Tensor::from_iter((1..49).map(wave), &Device::Cpu)?.reshape((2, 24, 1))?;
//! let inside = Tensor::from_iter((0..48).map(|i| f32::from(i < 36)), &Device::Cpu)?.reshape((2, 24, 1))?;
//! let lengths = Tensor::new(&[24u32, 12], &Device::Cpu)?;
//! let options = SequenceOptions { lengths: Some(&lengths), ..Default::default() };
//!
//! let mut optimiser = AdamW::new_lr(vars.all_vars(), 0.02)?;
//! let mut losses = vec![];
//! for _ in 0..30 {
//!     let h = layer.forward(&x, &options)?.h; // [B, T, N, D]
//!     let error = ((head.forward(&h.flatten_from(2)?)? - &next)? * &inside)?;
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
//! use flashrnn_candle::{Rnn, SequenceOptions};
//!
//! # fn main() -> candle_core::Result<()> {
//! let (batch, time, heads, head_dim) = (2, 7, 3, 4);
//! let wx = Var::randn(0f32, 1.0, (batch, time, 4, heads, head_dim), &Device::Cpu)?; // [B, T, Gx, N, D]
//! let r = Var::randn(0f32, 0.3, (4, heads, head_dim, head_dim), &Device::Cpu)?; // [Gr, N, D_out, D_in]
//! let b = Var::zeros((4, heads, head_dim), DType::F32, &Device::Cpu)?; // [G, N, D]
//!
//! let rnn = Rnn::new(Slstm).with(Options { forward_clip: Some(0.9), ..Options::default() });
//! let out = rnn.forward(&wx, &r, &b, &SequenceOptions::default())?;
//! assert_eq!(out.h.dims(), [batch, time, heads, head_dim]);
//! assert_eq!(out.last.dims(), [4, batch, heads, head_dim]); // [S, B, N, D]
//!
//! // The last state starts the next chunk, and gradients flow through it.
//! let options = SequenceOptions { s0: Some(&out.last), ..Default::default() };
//! let next = rnn.forward(&wx, &r, &b, &options)?;
//! let grads = next.h.sqr()?.sum_all()?.backward()?;
//! assert_eq!(grads.get(&r).map(Tensor::dims), Some(r.dims()));
//! # Ok(())
//! # }
//! ```
//!
//! # Element types
//! `wx` (and with it h and the states) is f32, f64, f16 or bf16; `r` and `b` are of the same type,
//! or f32 beside a 16-bit `wx`. The initial and the last state are f32, or f64 beside f64: a state
//! that was carried on in 16 bits would make a sequence cut in chunks differ from the whole one.
//!
//! # Variables that change
//! candle's variables change in place, through any of their aliases, and nothing tells when. So
//! every call of [`RnnLayer::forward`] and [`Rnn::forward`] combines and packs the weights with the
//! values they have then; only what is frozen keeps older ones, and says so by its type.
//!
//! Between a forward pass and its backward pass the operation keeps its own copies of the weights
//! and of `s0`: those may be overwritten, as a stateful model does, and the gradients are the right
//! ones. What it reads again is `wx` with [`Save::Recompute`](flashrnn::Save), and for a layer `x`
//! and `w`. Where those have changed in place, the backward pass is an error if the change is seen:
//! it compares up to 64 elements of each, so an optimiser's step or `Var::set` is seen, and a
//! change of a few elements may not be. candle's own operations do not look.
//!
//! # Gradients
//! Any number of forward passes may precede a backward pass, and one graph may be walked backward
//! several times.
//!
//! Second derivatives are not there. A loss computed from the gradient of a variable is an error in
//! `backward`; where the gradient is to count as a constant, `detach` it. The error costs memory:
//! the gradient of a variable refers to nothing of the forward pass, but to the terms that candle
//! summed, each of its own size. `detach` gradients that are kept or added up.
//!
//! # What the packing costs
//! A candle operation has at most three inputs and one output, and its backward pass is handed
//! those tensors and nothing else. So one call of [`Rnn::forward`] is one operation object with
//! this inside:
//!
//! - its inputs are `wx`, `r` and `b`; `s0`, where given, is copied behind `b`;
//! - its output is one flat tensor, the h of every step and then the last state. [`Output::h`] is a
//!   view of it, [`Output::last`] a copy. With 16-bit elements the flat tensor is f32, because
//!   `last` is, and h is a rounded copy of its part;
//! - between forward and backward it keeps the packed weights, `s0`, the states of every step,
//!   `S·B·T·N·D` elements, and what [`Save`](flashrnn::Save) asks for: with `Gates` `G·B·T·N·D`
//!   more, with `Recompute` none. h is held twice, in the states and in the output. Nothing is kept
//!   where no input depends on a variable;
//! - in the backward pass candle itself pads the gradient of each view with zeros to the size of
//!   the flat tensor and adds them up, a few passes over memory of the size of h.
//!   [`Rnn::all_states`] makes that S times as much, which is why h alone is the default.
//!
//! # On a GPU
//! [`Rnn::on`] takes any [`AnyBackend`](flashrnn::AnyBackend); the features `cuda` and `wgpu` bring
//! those of GPUs. Tensors stay on candle's CPU device. A call copies wx, the weights and s0 to the
//! GPU and the output back, and waits for it; its backward pass copies the gradient of the output
//! there (with `Recompute` wx too), and d_wx, the weights' gradients and d_s0 back. What is kept in
//! between stays on the GPU. On the CPU the operation works on candle's memory itself.

mod call;
mod frozen;
mod frozen_layer;
mod host;
mod join;
mod layer;
mod op;
mod plans;
mod product;
mod rnn;
mod sequence;
mod staging;
mod torch;

pub use frozen::{Frozen, State};
pub use frozen_layer::FrozenLayer;
pub use layer::{LayerSize, RnnLayer, Weights};
pub use rnn::Rnn;
pub use sequence::{Output, SequenceOptions};
pub use torch::{FromTorch, TorchGate};
