//! What is to be computed: sizes, layout and options, and the shape of every tensor that follows
//! from them.

use crate::{Cell, CellSizes, Error, Result};

/// The order of the batch and time axes in `wx`, `states`, `resets` and their gradients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Layout {
    /// `wx [B, T, Gx, N, D]`, `states [S, B, T, N, D]`, `resets [B, T]`.
    #[default]
    BatchMajor,
    /// `wx [T, B, Gx, N, D]`, `states [S, T, B, N, D]`, `resets [T, B]`.
    TimeMajor,
}

/// What the forward pass keeps for the backward pass, besides the states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Save {
    /// Every gate: `B·T·G·N·D` elements, and the faster backward pass.
    #[default]
    Gates,
    /// Nothing: the backward pass computes the gates again from the states and `wx`.
    Recompute,
}

/// The options of a recurrence, without its sizes.
///
/// Fields are public; `Options { reverse: true, ..Options::default() }` names just what differs
/// from the default, which is batch-major with every option off.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Options {
    /// The order of the batch and time axes.
    pub layout: Layout,
    /// Time runs backwards, each row from its own end; outputs stay at their positions.
    pub reverse: bool,
    /// `h' ← clamp(h', -v, v)`, v > 0. The gradient passes where `|h'| <= v` and is 0 beyond; NaN
    /// stays NaN.
    pub forward_clip: Option<f64>,
    /// The gradient that reaches `h_{t-1}` (or s0) through R is clamped elementwise to ±v, v > 0,
    /// after summing over gates.
    pub recurrent_grad_clip: Option<f64>,
    /// No gradient reaches `h_{t-1}` through R (`d_r` is still computed). Overrides
    /// `recurrent_grad_clip`.
    pub cut_recurrent_grad: bool,
    /// f32 products may round their factors to TF32 where a backend gains from it.
    pub tf32: bool,
    /// What the forward pass keeps for the backward pass.
    pub save: Save,
}

/// One problem: the sizes and the options of a recurrence.
///
/// [`Problem::new`] has every option off; [`Problem::with`] sets them:
///
/// ```
/// use flashrnn_core::{Options, Problem};
///
/// let problem = Problem::new(16, 256, 4, 64).with(Options { reverse: true, ..Options::default() });
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// `B`, the number of sequences, at least 0.
    pub batch: usize,
    /// `T`, the number of time steps, at least 0.
    pub time: usize,
    /// `N`, the number of heads, at least 1.
    pub heads: usize,
    /// `D`, the number of units of a head, at least 1.
    pub head_dim: usize,
    /// The layout of the tensors and the variations of the operator.
    pub options: Options,
}

impl Problem {
    /// Makes a batch-major problem with every option off.
    #[must_use]
    pub fn new(batch: usize, time: usize, heads: usize, head_dim: usize) -> Self {
        Self { batch, time, heads, head_dim, options: Options::default() }
    }

    /// Returns a problem of the same sizes with these options.
    #[must_use]
    pub fn with(&self, options: Options) -> Self {
        Self { options, ..self.clone() }
    }

    /// Checks the sizes and options, and returns the shape of every tensor for the cell `C`.
    ///
    /// # Errors
    /// [`Error::InvalidProblem`] where `heads` or `head_dim` is 0, a clip is not above 0 or is NaN,
    /// or a tensor would not fit the address space. A cell whose constants contradict each other
    /// does not compile ([`CellSizes`]).
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
        let wrong = |option, got: String, want| Err(Error::InvalidProblem { option, got, want });
        for (option, size) in [("heads", self.heads), ("head_dim", self.head_dim)] {
            if size == 0 {
                return wrong(option, "0".into(), "at least 1");
            }
        }
        if self.time > i32::MAX as usize {
            return wrong("time", self.time.to_string(), "at most 2147483647");
        }
        let Options { forward_clip, recurrent_grad_clip, .. } = self.options;
        for (option, clip) in
            [("forward_clip", forward_clip), ("recurrent_grad_clip", recurrent_grad_clip)]
        {
            match clip {
                Some(v) if v.is_nan() || v <= 0.0 => {
                    return wrong(option, v.to_string(), "a number above 0");
                }
                _ => {}
            }
        }
        if !shapes.fit_the_address_space() {
            let sizes = [self.batch, self.time, self.heads, self.head_dim];
            return wrong("sizes", format!("{sizes:?}"), "tensors that fit the address space");
        }
        Ok(shapes)
    }
}

/// The sizes of a problem with a cell, and from them the shape of every tensor of the operator.
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
    /// `B`
    pub batch: usize,
    /// `T`
    pub time: usize,
    /// `N`
    pub heads: usize,
    /// `D`
    pub head_dim: usize,
    /// `S`
    pub states: usize,
    /// `G`
    pub gates: usize,
    /// `Gr`: the first so many gates take recurrent input.
    pub recurrent: usize,
    /// `Gx`: the last so many gates take external input.
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

impl Shapes {
    /// Whether every tensor in f64 fits the address space, with head dimensions rounded up to 64 as
    /// the kernels' packed and padded forms are, twice over as where a buffer has two halves. So no
    /// product of sizes that a backend forms for memory of its own overflows. An empty batch counts
    /// as one row, no time as one step.
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

    fn outer(&self) -> [usize; 2] {
        match self.layout {
            Layout::BatchMajor => [self.batch, self.time],
            Layout::TimeMajor => [self.time, self.batch],
        }
    }

    /// `wx [B, T, Gx, N, D]` (or time-major).
    pub fn wx(&self) -> [usize; 5] {
        let [outer, inner] = self.outer();
        [outer, inner, self.external, self.heads, self.head_dim]
    }

    /// `r [Gr, N, D_out, D_in]`.
    pub fn r(&self) -> [usize; 4] {
        [self.recurrent, self.heads, self.head_dim, self.head_dim]
    }

    /// `b [G, N, D]`.
    pub fn b(&self) -> [usize; 3] {
        [self.gates, self.heads, self.head_dim]
    }

    /// `s0`, `last [S, B, N, D]`.
    pub fn state(&self) -> [usize; 4] {
        [self.states, self.batch, self.heads, self.head_dim]
    }

    /// `states [S, B, T, N, D]` (or time-major).
    pub fn states(&self) -> [usize; 5] {
        let [outer, inner] = self.outer();
        [self.states, outer, inner, self.heads, self.head_dim]
    }

    /// `h [B, T, N, D]` (or time-major).
    pub fn h(&self) -> [usize; 4] {
        let [outer, inner] = self.outer();
        [outer, inner, self.heads, self.head_dim]
    }

    /// `resets [B, T]` (or time-major).
    pub fn resets(&self) -> [usize; 2] {
        self.outer()
    }

    /// `N·D`, the number of units.
    pub fn units(&self) -> usize {
        self.heads * self.head_dim
    }

    /// `B·T`, the number of steps of all rows.
    pub fn tokens(&self) -> usize {
        self.batch * self.time
    }

    /// The position of row `b`'s step `t` among the `B·T` in this layout.
    #[inline(always)]
    pub fn token(&self, b: usize, t: usize) -> usize {
        match self.layout {
            Layout::BatchMajor => b * self.time + t,
            Layout::TimeMajor => t * self.batch + b,
        }
    }

    /// The sizes of [`Saved`](crate::Saved): elements of `gates` and of `wide`, for tensors of `T`.
    #[must_use]
    pub fn saved<T: crate::Element>(&self, save: Save) -> [usize; 2] {
        let unit_steps = self.tokens() * self.units();
        let gates = if save == Save::Gates { self.gates * unit_steps } else { 0 };
        let wide_gates = if save == Save::Gates { self.wide_gates.len() } else { 0 };
        let wide =
            if size_of::<T>() < size_of::<T::Wide>() { self.wide.len() + wide_gates } else { 0 };
        [gates, wide * unit_steps]
    }

    /// How packed weights of these sizes are laid out, in a backend's `order`.
    #[must_use]
    pub fn weights_layout<O>(&self, order: O) -> crate::WeightsLayout<O> {
        let &Self { recurrent, gates, heads, head_dim, .. } = self;
        crate::WeightsLayout { recurrent, gates, heads, head_dim, order }
    }

    /// How many gates take recurrent input only: the first `G - Gx`.
    pub fn inner(&self) -> usize {
        self.gates - self.external
    }

    /// Checks that a tensor of `got` elements can have the shape `want`.
    ///
    /// # Errors
    /// [`Error::Shape`]
    pub fn check(tensor: &'static str, got: usize, want: &[usize]) -> Result<()> {
        if got == want.iter().product() {
            Ok(())
        } else {
            Err(Error::Shape { tensor, got: vec![got], want: want.to_vec() })
        }
    }
}
