//! The arrangement of a module's layers, for training and for inference alike.

use candle_core::{D, Error, Result, Tensor};

use crate::config::RnnConfig;
use crate::sequence::last_steps;
use crate::storage::check;
use crate::{Output, SequenceOptions};

/// The results of a call of a module.
#[derive(Clone, Debug)]
pub struct RnnOutput {
    /// `[B, T, N·D]`, or `[B, T, 2·N·D]` if bidirectional (or time-major): the last layer's h at
    /// every step, in the type of `x`.
    pub h: Tensor,
    /// `[S, L, B, N, D]`: the final state of each row in each of the `L` layers and directions, in
    /// f32, or in f64 if `x` is f64. The order is that of PyTorch's `h_n`: layer by layer, the
    /// forward direction first. `last.get(0)` is h, and for LSTM `last.get(1)` is c. If it depends
    /// on variables, `detach` it before you keep it.
    pub last: Tensor,
}

/// The layers of a module, each with one or two directions, the forward direction first.
#[derive(Clone, Debug)]
pub(crate) struct Stack<L> {
    pub config: RnnConfig,
    pub layers: Vec<L>,
    /// `S`, `N`, `D`
    pub state: [usize; 3],
}

impl<L> Stack<L> {
    /// Returns a stack of the same arrangement whose layers are made by `f`.
    pub fn try_map<M>(&self, f: impl FnMut(&L) -> Result<M>) -> Result<Stack<M>> {
        let layers = self.layers.iter().map(f).collect::<Result<_>>()?;
        Ok(Stack { config: self.config, layers, state: self.state })
    }

    /// Returns the shape of the initial and final states of `batch` rows, `[S, L, B, N, D]`.
    pub fn state_shape(&self, batch: usize) -> [usize; 5] {
        let [states, heads, head_dim] = self.state;
        [states, self.layers.len(), batch, heads, head_dim]
    }

    /// Runs every layer over `x [B, T, I]` (or time-major), with dropout between them in training.
    pub fn forward(
        &self,
        x: &Tensor,
        options: &SequenceOptions,
        train: bool,
        run: impl Fn(&L, &Tensor, &SequenceOptions) -> Result<Output>,
    ) -> Result<RnnOutput> {
        self.check(x, options)?;
        let &SequenceOptions { s0, lengths, .. } = options;
        let resets = self.direction_resets(options)?;
        let directions = self.config.directions();
        let mut x = x.clone();
        let mut last = Vec::with_capacity(self.layers.len());
        for layer in self.layers.chunks(directions) {
            if train && self.config.dropout > 0.0 && !last.is_empty() {
                x = candle_nn::ops::dropout(&x, self.config.dropout)?;
            }
            let mut h = Vec::with_capacity(directions);
            for (direction, resets) in layer.iter().zip(&resets) {
                let s0 = s0.map(|s0| layer_state(s0, last.len())).transpose()?;
                let options = SequenceOptions { s0: s0.as_ref(), lengths, resets: resets.as_ref() };
                let out = run(direction, &x, &options)?;
                h.push(out.h.flatten_from(2)?);
                last.push(out.last);
            }
            x = Tensor::cat(&h, D::Minus1)?;
        }
        Ok(RnnOutput { h: x, last: Tensor::stack(&last, 1)? })
    }

    /// Returns an error if the module can't run step by step.
    pub fn check_steps(&self) -> Result<()> {
        if self.config.bidirectional {
            return Err(Error::msg(
                "a bidirectional module can't run step by step, because its backward direction \
                 starts at the last step",
            ));
        }
        Ok(())
    }

    /// Checks the shapes of the optional inputs for an `x` of three axes. (The first layer rejects
    /// any other.)
    fn check(&self, x: &Tensor, options: &SequenceOptions) -> Result<()> {
        let &[outer, inner, _] = x.dims() else { return Ok(()) };
        let batch = [outer, inner][1 - self.config.time_axis()];
        let check = |name, tensor: Option<&Tensor>, want: &[usize]| {
            tensor.map_or(Ok(()), |tensor| check(name, tensor, want))
        };
        check("s0", options.s0, &self.state_shape(batch))?;
        check("lengths", options.lengths, &[batch])?;
        check("resets", options.resets, &[outer, inner])
    }

    /// Returns the flags of each direction.
    fn direction_resets(&self, options: &SequenceOptions) -> Result<[Option<Tensor>; 2]> {
        let Some(resets) = options.resets else { return Ok([None, None]) };
        let axis = self.config.time_axis();
        let reverse = || last_steps(resets, options.lengths, axis);
        Ok([Some(resets.clone()), self.config.bidirectional.then(reverse).transpose()?])
    }
}

/// Returns the state `[S, B, N, D]` of layer and direction `index` from `[S, L, B, N, D]`.
pub(crate) fn layer_state(states: &Tensor, index: usize) -> Result<Tensor> {
    states.narrow(1, index, 1)?.squeeze(1)
}
