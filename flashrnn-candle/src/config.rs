//! The configuration of a module, and the sizes that follow from it.

use candle_core::{Error, Result};
use flashrnn::{Cell, Layout, Options, Problem};

/// The configuration of an [`Rnn`](crate::Rnn). The default is one layer of one head that runs
/// forwards in time.
///
/// ```
/// use flashrnn_candle::RnnConfig;
///
/// let config = RnnConfig { layers: 2, bidirectional: true, ..RnnConfig::default() };
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RnnConfig {
    /// The number of layers, at least 1. Each reads the output of the one below.
    pub layers: usize,
    /// Whether each layer has a second direction, which runs backwards in time and has parameters
    /// of its own. The outputs of both are concatenated, the forward direction first.
    pub bidirectional: bool,
    /// `N`, the number of heads of each layer and direction. It divides the number of units. A unit
    /// reads the past of its own head only.
    pub heads: usize,
    /// The rate of dropout between layers in training, at least 0 and below 1. It applies to the
    /// output of every layer but the last.
    pub dropout: f32,
    /// Whether the gates have biases, as PyTorch's `bias`. Without them b is 0.
    pub bias: bool,
    /// The options of the recurrence. `options.layout` is the layout of the input and the output.
    /// `options.reverse` can't be combined with `bidirectional`.
    pub options: Options,
}

impl Default for RnnConfig {
    fn default() -> Self {
        Self {
            layers: 1,
            bidirectional: false,
            heads: 1,
            dropout: 0.0,
            bias: true,
            options: Options::default(),
        }
    }
}

/// The sizes of one layer and direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LayerSize {
    /// `I`
    pub input: usize,
    /// `N`
    pub heads: usize,
    /// `D`
    pub head_dim: usize,
}

impl RnnConfig {
    /// Returns the number of directions of a layer.
    pub(crate) fn directions(&self) -> usize {
        1 + usize::from(self.bidirectional)
    }

    /// Returns the axis of time in the input and the output.
    pub(crate) fn time_axis(&self) -> usize {
        match self.options.layout {
            Layout::BatchMajor => 1,
            Layout::TimeMajor => 0,
        }
    }

    /// Returns the options of direction `index` of a layer.
    pub(crate) fn direction_options(&self, index: usize) -> Options {
        Options { reverse: self.options.reverse || index == 1, ..self.options }
    }

    /// Returns the size of layer `index` in a module of `hidden` units, which
    /// [`check`](Self::check) has checked.
    pub(crate) fn layer_size(&self, input: usize, hidden: usize, index: usize) -> LayerSize {
        LayerSize {
            input: if index == 0 { input } else { hidden * self.directions() },
            heads: self.heads,
            head_dim: hidden / self.heads,
        }
    }

    /// Checks the configuration of a module of the cell `C` with `input` features and `hidden`
    /// units.
    pub(crate) fn check<C: Cell>(&self, input: usize, hidden: usize) -> Result<()> {
        let Self { layers, heads, dropout, options, .. } = *self;
        for (name, size) in [("input", input), ("hidden", hidden), ("layers", layers)] {
            if size == 0 {
                return Err(Error::msg(format!("{name} is 0, wanted at least 1")));
            }
        }
        if !(0.0..1.0).contains(&dropout) {
            return Err(Error::msg(format!("dropout is {dropout}, wanted at least 0 and below 1")));
        }
        if self.bidirectional && options.reverse {
            return Err(Error::msg(
                "bidirectional and options.reverse are both set, wanted one of them; a \
                 bidirectional module runs in both directions",
            ));
        }
        // Also rejects 0 heads.
        let head_dim = hidden.checked_div(heads).unwrap_or(1).max(1);
        let problem = Problem::new(1, 1, heads, head_dim).with(options);
        problem.shapes::<C>().map_err(Error::wrap)?;
        if !hidden.is_multiple_of(heads) {
            return Err(Error::msg(format!(
                "hidden is {hidden}, wanted a multiple of the {heads} heads"
            )));
        }
        Ok(())
    }
}
