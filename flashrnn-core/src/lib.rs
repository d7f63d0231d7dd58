//! Defines flashrnn's operator and the traits that its backends implement.
//!
//! ```text
//! g_t = R s⁰_{t-1} + x_t + b            s_t = P(s_{t-1}, g_t)
//! ```
//!
//! `x_t` holds the input pre-activations (the caller has already applied W), `R` is block-diagonal
//! with one block per head, and `P` is the cell's pointwise function. `s⁰` is h, the first of the
//! cell's states.
//!
//! | tensor | shape | note |
//! |---|---|---|
//! | `wx` | `[B, T, Gx, N, D]` | input pre-activations |
//! | `r` | `[Gr, N, D_out, D_in]` | recurrent weights, one block per head |
//! | `b` | `[G, N, D]` | bias, one per pre-activation |
//! | `s0` | `[S, B, N, D]` | initial state, optional |
//! | `states` | `[S, B, T, N, D]` | every state at every step; `states[0]` is h |
//! | `last` | `[S, B, N, D]` | final state of each row |
//!
//! `B` is the batch size, `T` the number of time steps, `N` the number of heads, `D` the head
//! dimension, `S` the number of states and `G` the number of gates. The first `Gr` gates take
//! recurrent input, the last `Gx` take external input.
//!
//! # Numbers
//! Tensors may be stored in 16 bits ([`Element`]). Arithmetic is always f32 (f64 for f64 tensors),
//! and so are the states carried from step to step, `s0`, `last` and their gradients. With 16-bit
//! elements, every backend rounds
//! - `h`, `states`, saved gates, and the h that `R` multiplies to the nearest number, and
//!   *saturates* them: values out of range (beyond ±65504 in f16), including infinities, are stored
//!   as the largest finite number of the same sign. NaN stays NaN. The forward pass carries the f32
//!   state, which does not saturate; only the h that `R` multiplies does. The backward pass treats
//!   the stored state as the true one. (Gates that it recomputes may keep their true value.)
//! - the gradients `d_wx`, `d_r` and `d_b` to the nearest number, or to infinity out of range, so
//!   that loss scaling detects the overflow.
//!
//! For infinite pre-activations, the [built-in cells](cells) return the limits of their formulas
//! and finite gradients; NaN propagates. (WGSL guarantees neither infinities nor NaN.) With f32 and
//! f64 tensors, the slopes of tanh and sigmoid keep their relative accuracy in both tails, down to
//! a few times the smallest normal number.
//!
//! # Reading order
//! 1. [`Real`], the number a cell computes with, and [`Cell`], which is generic over it; [`Dual`]
//!    differentiates it.
//! 2. [`cells`]: Elman, GRU, LSTM, sLSTM.
//! 3. [`Problem`], the sizes and options, and [`Shapes`], the resulting shape of every tensor.
//! 4. [`mod@reference`], the operator as a plain f64 loop.
//! 5. [`Backend`] and [`Plan`], the traits a backend implements, and [`Forward`], [`Backward`] and
//!    [`Step`], the arguments of a plan's calls, with [`Weights`] and [`Saved`].
//! 6. [`trace`], a cell as a graph and as source code, for backends that compile it.

#![forbid(unsafe_code)]

pub mod backend;
mod call;
pub mod cell;
mod cell_sizes;
pub mod cells;
mod dual;
mod element;
mod error;
mod problem;
mod real;
pub mod reference;
mod saved;
pub mod trace;
mod weights;
mod workspace;

pub use backend::{Backend, Backward, Forward, Plan, Saved, SavedMut, SavedRef, Step, Weights};
pub use cell::{Array, Cell, Gate, derived_backward};
pub use cell_sizes::CellSizes;
pub use cells::{Elman, Gru, Lstm, Slstm};
pub use dual::Dual;
pub use element::{Dtype, Element};
pub use error::{Error, Result};
pub use half::{bf16, f16};
pub use problem::{Layout, Options, Problem, Save, Shapes, WeightsLayout};
pub use real::Real;
pub use workspace::{Info, Len, Workspace};

/// Re-exports what most programs use: `use flashrnn::prelude::*`.
pub mod prelude {
    pub use crate::{
        Backend, Backward, Cell, CellSizes, Elman, Error, Forward, Gate, Gru, Layout, Lstm,
        Options, Plan, Problem, Real, Save, Slstm, Step, bf16, f16,
    };
}
