//! Weights of the sLSTM cell of the Python package xlstm.
//!
//! A state dict of `sLSTMCell` (version 2.0.6) has two tensors, which each of its backends arranges
//! differently. The gates are i, f, z, o, as here.
//!
//! | xlstm | [`Vanilla`](Arrangement::Vanilla) | [`Cuda`](Arrangement::Cuda) | here |
//! |---|---|---|---|
//! | `_recurrent_kernel_` | `[N, 4·D_out, D_in]` | `[N, D_in, 4·D_out]` | `r [4, N, D_out, D_in]` |
//! | `_bias_` | `[4·N·D]`, gate first | `[N·4·D]`, head first | `b [4, N, D]` |
//!
//! The cell's input, `[B, T, 4·N·D]` with the gate first, is `wx` after a reshape to
//! `[B, T, 4, N, D]`. In `sLSTMLayer` of that version, the linear layer called `fgate` computes the
//! input of gate i, and `igate` that of gate f.
//!
//! ```no_run
//! use candle_core::{Device, Tensor, safetensors};
//! use flashrnn::Slstm;
//! use flashrnn_candle::xlstm::Arrangement;
//! use flashrnn_candle::{Recurrence, SequenceOptions};
//!
//! # fn main() -> candle_core::Result<()> {
//! let cell = safetensors::load("cell.safetensors", &Device::Cpu)?;
//! let (kernel, bias) = (&cell["_recurrent_kernel_"], &cell["_bias_"]);
//! let (r, b) = Arrangement::Vanilla.to_flashrnn(kernel, bias)?;
//! # let wx = Tensor::zeros((1, 1, 4, 1, 1), r.dtype(), &Device::Cpu)?;
//! let h = Recurrence::new(Slstm).forward(&wx, &r, &b, &SequenceOptions::default())?.h;
//! let (kernel, bias) = Arrangement::Vanilla.from_flashrnn(&r, &b)?;
//! # Ok(())
//! # }
//! ```

use candle_core::{Error, Result, Tensor};

use crate::storage::check;

/// The number of gates of an sLSTM.
const GATES: usize = 4;

/// The arrangement of a cell's parameters, which depends on the `backend` in its configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrangement {
    /// That of `backend="vanilla"`.
    Vanilla,
    /// That of `backend="cuda"`.
    Cuda,
}

impl Arrangement {
    /// Returns `r [4, N, D_out, D_in]` and `b [4, N, D]` for a cell's parameters.
    ///
    /// # Errors
    /// If the shapes contradict each other.
    pub fn to_flashrnn(self, recurrent_kernel: &Tensor, bias: &Tensor) -> Result<(Tensor, Tensor)> {
        let (heads, head_dim) = match (self, recurrent_kernel.dims()) {
            (Self::Vanilla, &[heads, rows, head_dim]) if rows == GATES * head_dim => {
                (heads, head_dim)
            }
            (Self::Cuda, &[heads, head_dim, columns]) if columns == GATES * head_dim => {
                (heads, head_dim)
            }
            (_, got) => {
                let wanted = match self {
                    Self::Vanilla => "[N, 4·D, D]",
                    Self::Cuda => "[N, D, 4·D]",
                };
                return Err(Error::msg(format!(
                    "recurrent_kernel: got shape {got:?}, wanted {wanted} for {self:?}"
                )));
            }
        };
        check("bias", bias, &[GATES * heads * head_dim])?;
        let (r, b) = match self {
            Self::Vanilla => (
                recurrent_kernel
                    .reshape((heads, GATES, head_dim, head_dim))?
                    .permute((1, 0, 2, 3))?,
                bias.reshape((GATES, heads, head_dim))?,
            ),
            Self::Cuda => (
                recurrent_kernel
                    .reshape((heads, head_dim, GATES, head_dim))?
                    .permute((2, 0, 3, 1))?,
                bias.reshape((heads, GATES, head_dim))?.permute((1, 0, 2))?,
            ),
        };
        Ok((r.contiguous()?, b.contiguous()?))
    }

    /// Returns `_recurrent_kernel_` and `_bias_` for `r [4, N, D_out, D_in]` and `b [4, N, D]`.
    ///
    /// # Errors
    /// If the shapes contradict each other.
    #[allow(clippy::wrong_self_convention)] // It is the arrangement that converts.
    pub fn from_flashrnn(self, r: &Tensor, b: &Tensor) -> Result<(Tensor, Tensor)> {
        let (heads, head_dim) = match r.dims() {
            &[GATES, heads, rows, head_dim] if rows == head_dim => (heads, head_dim),
            got => {
                return Err(Error::msg(format!("r: got shape {got:?}, wanted [4, N, D, D]")));
            }
        };
        check("b", b, &[GATES, heads, head_dim])?;
        let (kernel, bias) = match self {
            Self::Vanilla => {
                (r.permute((1, 0, 2, 3))?.reshape((heads, GATES * head_dim, head_dim))?, b.clone())
            }
            Self::Cuda => (
                r.permute((1, 3, 0, 2))?.reshape((heads, head_dim, GATES * head_dim))?,
                b.permute((1, 0, 2))?,
            ),
        };
        Ok((kernel.contiguous()?, bias.flatten_all()?.contiguous()?))
    }
}
