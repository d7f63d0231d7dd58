//! Inference with one layer in one direction, whose weights were packed once.

use candle_core::{Error, Result, Tensor};

use crate::place::check_devices;
use crate::product::Product;
use crate::{Frozen, Output, SequenceOptions, State};

/// A layer for inference in one direction, with packed weights.
#[derive(Debug)]
pub(crate) struct FrozenLayer {
    frozen: Frozen,
    /// `[Gx·N·D, I]`
    w: Tensor,
    /// `Gx`, `N`, `D`
    gates: [usize; 3],
}

impl FrozenLayer {
    pub fn new(frozen: Frozen, w: &Tensor, gates: [usize; 3]) -> Result<Self> {
        Ok(Self { frozen, w: w.detach().force_contiguous()?, gates })
    }

    /// Runs the layer over `x [B, T, I]` (or time-major), for any B and T.
    pub fn forward(&self, x: &Tensor, options: &SequenceOptions) -> Result<Output> {
        self.frozen.forward(&self.product(x, 3)?, options)
    }

    /// Makes the initial state of `batch` rows, filled with zeros.
    pub fn state(&self, batch: usize) -> Result<State> {
        self.frozen.state(batch)
    }

    /// Makes a state from `s0 [S, B, N, D]`, such as an [`Output::last`].
    pub fn state_from(&self, s0: &Tensor) -> Result<State> {
        self.frozen.state_from(s0)
    }

    /// Advances `state` by one time step with `x [B, I]`, and returns h `[B, N, D]`.
    pub fn step(&self, x: &Tensor, state: &mut State) -> Result<Tensor> {
        self.frozen.step(&self.product(x, 2)?, state)
    }

    /// Computes `W x` in the shape `[.., Gx, N, D]`, for an x with `axes` axes.
    fn product(&self, x: &Tensor, axes: usize) -> Result<Tensor> {
        let input = self.w.dim(1)?;
        match x.dims().split_last() {
            Some((&features, outer)) if features == input && x.rank() == axes => {
                check_devices([("x", x), ("the frozen w", &self.w)])?;
                let shape = [outer, &self.gates].concat();
                Ok(Product::forward(&x.contiguous()?, &self.w, &shape, None)?.0)
            }
            _ => {
                let order = if axes == 2 { "[B, I]" } else { "[B, T, I] or [T, B, I]" };
                Err(Error::msg(format!(
                    "x: got shape {:?}, wanted {order} with I = {input}",
                    x.dims()
                )))
            }
        }
    }
}
