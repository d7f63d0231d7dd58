//! Describes what to compute (sizes, layout and options) and derives the shape of every tensor.

use crate::{Cell, CellSizes, Error, Result};

/// Selects the order of the batch and time axes in `wx`, `h`, `states`, their gradients and
/// `resets`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Layout {
    /// `wx [B, T, Gx, N, D]`, `h [B, T, N, D]`, `states [S, B, T, N, D]`, `resets [B, T]`.
    #[default]
    BatchMajor,
    /// `wx [T, B, Gx, N, D]`, `h [T, B, N, D]`, `states [S, T, B, N, D]`, `resets [T, B]`.
    TimeMajor,
}

/// Selects what the forward pass saves for the backward pass, besides the states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Save {
    /// Saves every gate, which takes `B·T·G·N·D` more elements and makes the backward pass faster.
    #[default]
    Gates,
    /// Saves no gates: the backward pass recomputes them from the states and `wx`. With 16-bit
    /// tensors, the states in [`Cell::WIDE`] are still saved in full precision.
    Recompute,
}

/// Holds the options of a recurrence, without its sizes.
///
/// The default is batch-major with every option off. Set fields by struct update, as in
/// `Options { reverse: true, ..Options::default() }`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Options {
    /// The order of the batch and time axes.
    pub layout: Layout,
    /// Processes each row from its own end to its start. Outputs keep their positions in time.
    pub reverse: bool,
    /// Clamps h after each step to ±v, where v > 0. The gradient passes where `|h'| <= v` before
    /// the clamp and is 0 elsewhere; NaN stays NaN.
    pub forward_clip: Option<f64>,
    /// Clamps each element of the gradient that flows through R to `h_{t-1}` (or s0), after summing
    /// it over the gates, to ±v, where v > 0.
    pub recurrent_grad_clip: Option<f64>,
    /// Blocks the gradient that flows through R to `h_{t-1}` (`d_r` is still computed). Overrides
    /// `recurrent_grad_clip`.
    pub cut_recurrent_grad: bool,
    /// Allows f32 matrix products to round their factors to TF32 on backends where that is faster.
    pub tf32: bool,
    /// What the forward pass saves for the backward pass.
    pub save: Save,
}

/// Holds the sizes and the options of a recurrence.
///
/// [`Problem::new`] turns every option off; [`Problem::with`] sets them:
///
/// ```
/// use flashrnn_core::{Options, Problem};
///
/// let options = Options { reverse: true, ..Options::default() };
/// let problem = Problem::new(16, 256, 4, 64).with(options);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// `B`, the number of sequences, at least 0.
    pub batch: usize,
    /// `T`, the number of time steps, at least 0.
    pub time: usize,
    /// `N`, the number of heads, at least 1.
    pub heads: usize,
    /// `D`, the number of units per head, at least 1.
    pub head_dim: usize,
    /// The layout of the tensors and the variants of the operator.
    pub options: Options,
}

impl Problem {
    /// Makes a batch-major problem with every option off.
    #[must_use]
    pub fn new(batch: usize, time: usize, heads: usize, head_dim: usize) -> Self {
        Self { batch, time, heads, head_dim, options: Options::default() }
    }

    /// Returns a problem with the same sizes and the given options.
    #[must_use]
    pub fn with(&self, options: Options) -> Self {
        Self { options, ..self.clone() }
    }

    /// Checks the sizes and options, and returns the shape of every tensor for the cell `C`.
    ///
    /// # Errors
    /// [`Error::InvalidProblem`] if `heads` or `head_dim` is 0, `time` exceeds `i32::MAX`, a clip
    /// is not a number above 0, or a tensor would not fit the address space. A cell whose constants
    /// contradict each other does not compile ([`CellSizes`]).
    pub fn shapes<C: Cell>(&self) -> Result<Shapes> {
        let shapes = Shapes {
            batch: self.batch,
            time: self.time,
            heads: self.heads,
            head_dim: self.head_dim,
            states: C::S,
            gates: C::G,
            recurrent: C::GR,
            external: C::GX,
            wide: C::WIDE,
            wide_gates: C::WIDE_GATES,
            constant: C::CONSTANT,
            layout: self.options.layout,
        };
        let invalid = |option, got: String, want| Err(Error::InvalidProblem { option, got, want });
        for (option, size) in [("heads", self.heads), ("head_dim", self.head_dim)] {
            if size == 0 {
                return invalid(option, "0".into(), "at least 1");
            }
        }
        if self.time > i32::MAX as usize {
            return invalid("time", self.time.to_string(), "at most 2147483647");
        }
        let Options { forward_clip, recurrent_grad_clip, .. } = self.options;
        for (option, clip) in
            [("forward_clip", forward_clip), ("recurrent_grad_clip", recurrent_grad_clip)]
        {
            match clip {
                Some(v) if v.is_nan() || v <= 0.0 => {
                    return invalid(option, v.to_string(), "a number above 0");
                }
                _ => {}
            }
        }
        if !shapes.fit_the_address_space() {
            let sizes = [self.batch, self.time, self.heads, self.head_dim];
            return invalid("sizes", format!("{sizes:?}"), "tensors that fit the address space");
        }
        Ok(shapes)
    }
}

/// Holds the sizes of a problem and its cell, and derives the shape of every tensor of the
/// operator.
///
/// | tensor | shape (batch-major) |
/// |---|---|
/// | `wx`, `d_wx` | `[B, T, Gx, N, D]` |
/// | `r`, `d_r` | `[Gr, N, D_out, D_in]` |
/// | `b`, `d_b` | `[G, N, D]` |
/// | `s0`, `d_s0`, `last`, `d_last` | `[S, B, N, D]` |
/// | `states`, `d_states` | `[S, B, T, N, D]` |
/// | `h`, `d_h` | `[B, T, N, D]` |
/// | `lengths` | `[B]` |
/// | `resets` | `[B, T]` |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shapes {
    /// `B`, the number of sequences.
    pub batch: usize,
    /// `T`, the number of time steps.
    pub time: usize,
    /// `N`, the number of heads.
    pub heads: usize,
    /// `D`, the number of units per head.
    pub head_dim: usize,
    /// `S`, the number of states.
    pub states: usize,
    /// `G`, the number of gates.
    pub gates: usize,
    /// `Gr`, the number of gates with recurrent input. They come first.
    pub recurrent: usize,
    /// `Gx`, the number of gates with external input. They come last.
    pub external: usize,
    /// [`Cell::WIDE`]
    pub wide: &'static [usize],
    /// [`Cell::WIDE_GATES`]
    pub wide_gates: &'static [usize],
    /// [`Cell::CONSTANT`]
    pub constant: &'static [usize],
    /// The order of the batch and time axes.
    pub layout: Layout,
}

/// Describes the layout of packed weights: their sizes, and the order of their elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightsLayout<O> {
    /// `Gr`, the number of gates with recurrent input.
    pub recurrent: usize,
    /// `G`, the number of gates.
    pub gates: usize,
    /// `N`, the number of heads.
    pub heads: usize,
    /// `D`, the number of units per head.
    pub head_dim: usize,
    /// The backend's [`PackedOrder`](crate::Backend::PackedOrder).
    pub order: O,
}

impl Shapes {
    /// Returns whether every tensor fits the address space even in f64, with head dimensions padded
    /// to multiples of 64, and at twice its size, as in a double buffer. Backends can therefore
    /// compute the sizes of their own memory without overflow. An empty batch counts as one row,
    /// and an empty sequence as one step.
    fn fit_the_address_space(&self) -> bool {
        let fits = |dims: &[usize]| {
            dims.iter()
                .try_fold(2 * size_of::<f64>(), |bytes, &dim| bytes.checked_mul(dim.max(1)))
                .is_some_and(|bytes| bytes <= isize::MAX as usize)
        };
        let Some(padded) = self.head_dim.checked_next_multiple_of(64) else { return false };
        fits(&[self.gates + self.states, self.batch, self.time, self.heads, padded])
            && fits(&[self.gates, self.heads, padded, padded])
    }

    /// Returns the sizes of the batch and time axes, in the order of the layout.
    fn leading_axes(&self) -> [usize; 2] {
        match self.layout {
            Layout::BatchMajor => [self.batch, self.time],
            Layout::TimeMajor => [self.time, self.batch],
        }
    }

    /// Returns the shape of `wx`: `[B, T, Gx, N, D]` (or time-major).
    pub fn wx(&self) -> [usize; 5] {
        let [outer, inner] = self.leading_axes();
        [outer, inner, self.external, self.heads, self.head_dim]
    }

    /// Returns the shape of `r`: `[Gr, N, D_out, D_in]`.
    pub fn r(&self) -> [usize; 4] {
        [self.recurrent, self.heads, self.head_dim, self.head_dim]
    }

    /// Returns the shape of `b`: `[G, N, D]`.
    pub fn b(&self) -> [usize; 3] {
        [self.gates, self.heads, self.head_dim]
    }

    /// Returns the shape of `s0` and `last`: `[S, B, N, D]`.
    pub fn state(&self) -> [usize; 4] {
        [self.states, self.batch, self.heads, self.head_dim]
    }

    /// Returns the shape of `states`: `[S, B, T, N, D]` (or time-major).
    pub fn states(&self) -> [usize; 5] {
        let [outer, inner] = self.leading_axes();
        [self.states, outer, inner, self.heads, self.head_dim]
    }

    /// Returns the shape of `h`: `[B, T, N, D]` (or time-major).
    pub fn h(&self) -> [usize; 4] {
        let [outer, inner] = self.leading_axes();
        [outer, inner, self.heads, self.head_dim]
    }

    /// Returns the shape of `resets`: `[B, T]` (or time-major).
    pub fn resets(&self) -> [usize; 2] {
        self.leading_axes()
    }

    /// Returns the number of units, `N·D`.
    pub fn units(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Returns the number of tokens, `B·T`: one for each step of each row.
    pub fn tokens(&self) -> usize {
        self.batch * self.time
    }

    /// Returns the index of row `b`'s step `t` among the `B·T` tokens of this layout.
    #[inline(always)]
    pub fn token(&self, b: usize, t: usize) -> usize {
        match self.layout {
            Layout::BatchMajor => b * self.time + t,
            Layout::TimeMajor => t * self.batch + b,
        }
    }

    /// Returns the sizes of the buffers `gates` and `wide` of [`Saved`](crate::Saved), in elements,
    /// for tensors of `T`.
    #[must_use]
    pub fn saved<T: crate::Element>(&self, save: Save) -> [usize; 2] {
        let unit_steps = self.tokens() * self.units();
        let gates = if save == Save::Gates { self.gates * unit_steps } else { 0 };
        let wide_gates = if save == Save::Gates { self.wide_gates.len() } else { 0 };
        let wide =
            if size_of::<T>() < size_of::<T::Wide>() { self.wide.len() + wide_gates } else { 0 };
        [gates, wide * unit_steps]
    }

    /// Returns the layout of weights of the problem's sizes, packed in a backend's `order`.
    #[must_use]
    pub fn weights_layout<O>(&self, order: O) -> WeightsLayout<O> {
        let &Self { recurrent, gates, heads, head_dim, .. } = self;
        WeightsLayout { recurrent, gates, heads, head_dim, order }
    }

    /// Returns the number of gates without external input, `G - Gx`. They come first.
    pub fn inner(&self) -> usize {
        self.gates - self.external
    }

    /// Checks that a tensor of `got` elements can have the shape `want`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the element counts differ.
    pub fn check(tensor: &'static str, got: usize, want: &[usize]) -> Result<()> {
        if got == want.iter().product() {
            Ok(())
        } else {
            Err(Error::Shape { tensor, got: vec![got], want: want.to_vec() })
        }
    }
}
