//! flashrnn's recurrences as a differentiable [candle](candle_core) operation on tensors that lie in the CPU's memory.
//!
//! [`Rnn`] is the operator on tensors; [`RnnLayer`] adds the input product W and owns the parameters; [`FromTorch`]
//! brings the weights of PyTorch's `nn.LSTM`, `nn.GRU` and `nn.RNN`.
//!
//! ```
//! use candle_core::{DType, Device, Tensor, Var};
//! use flashrnn::Slstm;
//! use flashrnn_candle::{Optional, Rnn};
//!
//! # fn main() -> candle_core::Result<()> {
//! let (batch, time, heads, head_dim) = (2, 7, 3, 4);
//! let wx = Var::randn(0f32, 1.0, (batch, time, 4, heads, head_dim), &Device::Cpu)?; // [B, T, Gx, N, D]
//! let r = Var::randn(0f32, 0.3, (4, heads, head_dim, head_dim), &Device::Cpu)?; // [Gr, N, D_out, D_in]
//! let b = Var::zeros((4, heads, head_dim), DType::F32, &Device::Cpu)?; // [G, N, D]
//!
//! let rnn = Rnn { forward_clip: Some(0.9), ..Rnn::new(Slstm) };
//! let out = rnn.forward(&wx, &r, &b, &Optional::default())?;
//! assert_eq!(out.h.dims(), [batch, time, heads, head_dim]);
//! assert_eq!(out.last.dims(), [4, batch, heads, head_dim]); // [S, B, N, D]
//!
//! // The last state starts the next chunk, and gradients flow through it.
//! let next = rnn.forward(&wx, &r, &b, &Optional { s0: Some(&out.last), ..Optional::default() })?;
//! let grads = next.h.sqr()?.sum_all()?.backward()?;
//! assert_eq!(grads.get(&r).map(Tensor::dims), Some(r.dims()));
//! # Ok(())
//! # }
//! ```
//!
//! # Element types
//! `wx` (and with it h and the states) is f32, f64, f16 or bf16; `r` and `b` are of the same type, or f32 beside a
//! 16-bit `wx`. The initial and the last state are f32, or f64 beside f64: a state that was carried on in 16 bits
//! would make a sequence cut in chunks differ from the whole one.
//!
//! # What the packing costs
//! A candle operation has at most three inputs and one output, and its backward pass is handed those tensors and
//! nothing else. So one call of [`Rnn::forward`] is one operation object with this inside:
//!
//! - its inputs are `wx`, a flat copy of `r` and `b` (one copy of the weights a call) and `s0`;
//! - its output is one flat tensor, the h of every step and then `last`; the tensors in [`Output`] are views of it, not
//!   copies. With 16-bit elements the flat tensor is f32, because `last` is, and h is a rounded copy of its part;
//! - between forward and backward it keeps the states of every step, `S·B·T·N·D` elements, and what
//!   [`Save`](flashrnn::Save) asks for: with `Gates` `G·B·T·N·D` more, with `Recompute` none. h is therefore held twice, once in the
//!   states and once in the output. Nothing is kept where no input depends on a variable;
//! - in the backward pass candle itself pads the gradient of each view with zeros to the size of the flat tensor and
//!   adds them up, a few passes over memory of the size of h. [`Rnn::all_states`] makes that S times as much, which is
//!   why h alone is the default.
//!
//! # On a GPU
//! [`Rnn::on`] takes any backend that is a [`Bridge`]; with the feature `cuda` that is `flashrnn::Cuda` too, with `wgpu`
//! `flashrnn::Wgpu`. Tensors stay on candle's CPU device. A call copies wx, the weights and s0 to the GPU and the output back, and waits for it; its backward pass
//! copies s0 and the gradient of the output there (with `Recompute` wx too), and d_wx, the weights' gradients and d_s0 back. What
//! is kept in between stays on the GPU. With [`Cpu`](flashrnn::Cpu) the operation works on candle's memory itself.
//!
//! # Many calls
//! Since the object belongs to the call, any number of forward passes may precede a backward pass, and one graph may be
//! walked backward several times. Second derivatives are not there: gradients come without a graph of their own.

mod bridge;
mod layer;
mod op;
mod rnn;
mod torch;

pub use bridge::Bridge;
pub use layer::{LayerSize, RnnLayer};
pub use rnn::{Optional, Output, Rnn};
pub use torch::{FromTorch, TorchTensors, Weights};
