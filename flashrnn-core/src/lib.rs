//! The meaning of flashrnn's operator, and the traits that its backends share.
//!
//! ```text
//! g_t = R s⁰_{t-1} + x_t + b            s_t = P(s_{t-1}, g_t)
//! ```
//!
//! `x_t` are input pre-activations (the caller has applied W), `R` is block-diagonal, one block a
//! head, and `P` is the cell's pointwise function. `s⁰` is h, the first of the cell's states.
//!
//! | tensor | shape | note |
//! |---|---|---|
//! | `wx` | `[B, T, Gx, N, D]` | input pre-activations |
//! | `r` | `[Gr, N, D_out, D_in]` | recurrent weights, one block a head |
//! | `b` | `[G, N, D]` | bias, one a pre-activation |
//! | `s0` | `[S, B, N, D]` | initial state, optional |
//! | `states` | `[S, B, T, N, D]` | every state at every step; `states[0]` is h |
//! | `last` | `[S, B, N, D]` | the state each row ends in |
//!
//! `B` batch, `T` time, `N` heads, `D` head dimension, `S` states, `G` gates, of which the first
//! `Gr` take recurrent and the last `Gx` external input.
//!
//! # Numbers
//! Storage may be narrow ([`Element`]), arithmetic is f32 (f64 for f64), and so are the carried
//! states, `s0`, `last` and their gradients. With 16-bit elements every backend rounds
//! - `h`, `states`, saved gates, and the h that `R` reads to the nearest number, and *saturates*
//!   them: what lies beyond the range (±65504 in f16), infinities included, is stored as the
//!   largest finite number of its sign. A NaN stays. The forward pass computes with the carried f32
//!   state and is exact beyond that range; the backward pass takes the stored state for the true
//!   one. (Gates that it computes again may keep their true value.)
//! - the gradients `d_wx`, `d_r` and `d_b` to the nearest number, or infinity beyond the range, so
//!   that loss scaling sees an overflow.
//!
//! Infinite pre-activations of the [built-in cells](cells) give the limits of their formulas and
//! finite gradients, a NaN gives NaN. (WGSL guarantees neither infinities nor NaN.) The slopes of
//! tanh and sigmoid keep their relative accuracy in both tails, down to a few times the smallest
//! normal number.
//!
//! # Reading order
//! 1. [`Real`], the number a cell computes with, and [`Cell`], which is written once over it;
//!    [`Dual`] differentiates it.
//! 2. [`cells`]: Elman, GRU, LSTM, sLSTM.
//! 3. [`Problem`]: sizes and options; [`Shapes`]: what follows for each tensor.
//! 4. [`mod@reference`]: the operator as an obvious loop.
//! 5. [`Backend`] and [`Plan`]: what a backend implements; [`Forward`], [`Backward`], [`Step`]:
//!    what its calls are given, with [`Weights`] and [`Saved`].
//! 6. [`trace`]: a cell as a graph and as source code, for backends that compile it.

#![forbid(unsafe_code)]

pub mod backend;
mod call;
pub mod cell;
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

pub use backend::{Backend, Info, Len, Plan, Workspace};
pub use call::{Backward, Forward, Step};
pub use cell::{Array, Cell, CellSizes, Gate, derived_backward};
pub use cells::{Elman, Gru, Lstm, Slstm};
pub use dual::Dual;
pub use element::{Dtype, Element};
pub use error::{Error, Result};
pub use half::{bf16, f16};
pub use problem::{Layout, Options, Problem, Save, Shapes};
pub use real::Real;
pub use saved::{Saved, SavedMut, SavedRef};
pub use weights::{Weights, WeightsLayout};

/// What most programs use: `use flashrnn::prelude::*`.
pub mod prelude {
    pub use crate::{
        Backend, Backward, Cell, CellSizes, Elman, Error, Forward, Gate, Gru, Layout, Lstm,
        Options, Plan, Problem, Real, Save, Slstm, Step, bf16, f16,
    };
}
