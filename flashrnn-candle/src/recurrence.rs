//! The operator on candle's tensors. Checks the arguments and wraps the packed operation.

use std::sync::Arc;

use candle_core::{DType, Error, Result, Tensor};
use flashrnn::{AnyBackend, Backend, Cell, Cpu, Layout, Options, Problem, Shapes};

use crate::call::{Call, ForwardOutput, Rest};
use crate::join::concat;
use crate::pass::Pass;
use crate::place::Place;
use crate::plans::Plans;
use crate::product::Product;
use crate::sequence::Sequence;
use crate::storage::{Number, check, plain};
use crate::{Output, SequenceOptions};

/// A recurrence with its options, for tensors of any size.
///
/// It caches the plans of up to 32 recently used sizes. Clones share the cache.
///
/// ```
/// use flashrnn::{Options, Save, Slstm};
/// use flashrnn_candle::Recurrence;
///
/// let options = Options { reverse: true, save: Save::Recompute, ..Options::default() };
/// let recurrence = Recurrence::new(Slstm).with(options);
/// assert!(recurrence.options().reverse);
/// ```
#[derive(Clone, Debug)]
pub struct Recurrence<C> {
    cell: C,
    backend: AnyBackend,
    options: Options,
    all_states: bool,
    plans: Arc<Plans>,
}

/// Calls a method that is generic over the element types of wx and of the weights.
macro_rules! by_types {
    ($wx:expr, $weights:expr, $recurrence:ident.$method:ident $arguments:tt) => {{
        use candle_core::DType::{BF16, F16, F32, F64};
        use flashrnn::{bf16, f16};

        match ($wx, $weights) {
            (F32, F32) => $recurrence.$method::<f32, f32>$arguments,
            (F64, F64) => $recurrence.$method::<f64, f64>$arguments,
            (F16, F16) => $recurrence.$method::<f16, f16>$arguments,
            (F16, F32) => $recurrence.$method::<f16, f32>$arguments,
            (BF16, BF16) => $recurrence.$method::<bf16, bf16>$arguments,
            (BF16, F32) => $recurrence.$method::<bf16, f32>$arguments,
            (wx, weights) => Err($crate::recurrence::wrong_types(wx, weights)),
        }
    }};
}
pub(crate) use by_types;

/// Makes the error for element types that do not go together.
pub(crate) fn wrong_types(wx: DType, weights: DType) -> Error {
    match wx {
        DType::F32 | DType::F64 | DType::F16 | DType::BF16 => {
            Error::msg(format!("r is {weights:?}, wanted {wx:?} like wx, or F32 with a 16-bit wx"))
        }
        _ => Error::msg(format!("wx is {wx:?}, wanted F32, F64, F16 or BF16")),
    }
}

impl<C: Cell> Recurrence<C> {
    /// Makes the recurrence of `cell`, one of [`flashrnn`]'s or your own, on the CPU: batch-major,
    /// with every option off.
    #[must_use]
    pub fn new(cell: C) -> Self {
        Self::on(AnyBackend::Cpu(Cpu::new()), cell)
    }

    /// Makes the recurrence of `cell` on `backend`: batch-major, with every option off. Tensors of
    /// CUDA devices need the feature `candle-cuda` instead, and do not use `backend`.
    #[must_use]
    pub fn on(backend: AnyBackend, cell: C) -> Self {
        Self {
            cell,
            backend,
            options: Options::default(),
            all_states: false,
            plans: Arc::default(),
        }
    }

    /// Returns this recurrence with `options`.
    #[must_use]
    pub fn with(self, options: Options) -> Self {
        Self { options, ..self }
    }

    /// Selects whether [`Output::states`] is present. The [crate documentation](crate) describes
    /// its cost.
    #[must_use]
    pub fn all_states(self, all_states: bool) -> Self {
        Self { all_states, ..self }
    }

    /// Returns this recurrence on `backend`, with a cache of its own.
    pub(crate) fn moved(&self, backend: &AnyBackend) -> Self {
        Self { backend: backend.clone(), plans: Arc::default(), ..self.clone() }
    }

    /// Returns the options.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Returns the backend.
    #[must_use]
    pub fn backend(&self) -> &AnyBackend {
        &self.backend
    }

    /// Runs the recurrence over `wx [B, T, Gx, N, D]` with `r [Gr, N, D_out, D_in]` and
    /// `b [G, N, D]`.
    ///
    /// Every tensor of the [`Output`] is differentiable with respect to `wx`, `r`, `b` and `s0`.
    /// Tensors that are not contiguous are copied. Every call packs `r` and `b` with their current
    /// values.
    ///
    /// # Errors
    /// If a tensor has the wrong shape or type or is on another device than the others, a length is
    /// outside 0 to T (on the CPU), an option is invalid, or memory runs out.
    pub fn forward(
        &self,
        wx: &Tensor,
        r: &Tensor,
        b: &Tensor,
        options: &SequenceOptions,
    ) -> Result<Output> {
        let shapes = self.shapes_of(wx)?;
        check("r", r, &shapes.r())?;
        check("b", b, &shapes.b())?;
        let named = [("wx", wx), ("r", r), ("b", b)];
        let place = Place::of(&self.backend, named.into_iter().chain(options.tensors()))?;
        let sequence = Sequence::read(options, &shapes)?;
        let wx = wx.contiguous()?;
        self.differentiable(place, &Source::Wx(&wx), &[r, b], &shapes, sequence)
    }

    /// Runs the recurrence as an operation of candle's graph. `weights` are r and b or the parts of
    /// both, with the numbers of elements given by `shapes`, but of any shape.
    pub(crate) fn differentiable(
        &self,
        place: Place,
        source: &Source<'_>,
        weights: &[&Tensor],
        shapes: &Shapes,
        sequence: Sequence<'_>,
    ) -> Result<Output> {
        let wx = source.dtype();
        let own = weights.first().map_or(wx, |r| r.dtype());
        by_types!(wx, own, self.check_types())?;
        same_type(weights)?;
        let wide = if wx == DType::F64 { DType::F64 } else { DType::F32 };
        // s0, r and b as one tensor, because an operation of candle's has at most three inputs.
        // With an initial state, r and b get its type, which holds their values exactly.
        let rest = match sequence.s0 {
            None => concat(weights)?,
            Some(s0) => {
                let all = [&[s0], weights].concat();
                let all = all.iter().map(|tensor| tensor.to_dtype(wide));
                let all = all.collect::<Result<Vec<_>>>()?;
                concat(&all.iter().collect::<Vec<_>>())?
            }
        };
        by_types!(wx, rest.dtype(), self.run(place, source, &rest, shapes, sequence))
    }

    #[allow(clippy::unused_self, reason = "called by `by_types`")]
    fn check_types<T: Number, W: Number>(&self) -> Result<()> {
        Ok(())
    }

    fn run<T: Number, W: Number>(
        &self,
        place: Place,
        source: &Source<'_>,
        rest: &Tensor,
        shapes: &Shapes,
        sequence: Sequence<'_>,
    ) -> Result<Output> {
        let call = self.call::<T, W>(place, shapes, sequence)?;
        let differentiable = source.track_op() || rest.track_op();
        let (wx, product) = source.compute(shapes)?;
        let ForwardOutput { head, last, activations } =
            call.forward(&wx, Rest::Joined(rest), differentiable)?;
        let Some(activations) = activations else {
            let (head, last) = (plain(head, call.head_shape()), plain(last, &shapes.state()[..]));
            return self.output(head, last);
        };
        // The backward pass of a layer that recomputes reads this wx, which nothing else refers to.
        let kept = (call.recomputes() && product.is_some()).then(|| wx.clone());
        let pass = Arc::new(Pass::new(call, activations, kept));
        let last = match (*source, product) {
            (Source::Product { x, w, .. }, Some(product)) => {
                pass.layer(product, [x, w, rest], last)?
            }
            _ => pass.recurrence([&wx, rest], last)?,
        };
        self.output(pass.head(&last, head)?, last)
    }

    /// Makes the results from h or all states, and the final state.
    pub(crate) fn output(&self, head: Tensor, last: Tensor) -> Result<Output> {
        if self.all_states {
            Ok(Output { h: head.get(0)?, last, states: Some(head) })
        } else {
            Ok(Output { h: head, last, states: None })
        }
    }

    /// Makes a call for tensors of `shapes`, with a cached plan if there is one.
    pub(crate) fn call<T: Number, W: Number>(
        &self,
        place: Place,
        shapes: &Shapes,
        sequence: Sequence<'_>,
    ) -> Result<Call<T, W>> {
        let problem = Problem::new(shapes.batch, shapes.time, shapes.heads, shapes.head_dim)
            .with(self.options);
        let make = || place.backend().plan::<T, W, C>(&self.cell, &problem);
        Ok(Call {
            plan: self.plans.get(&(place.id(), problem.clone()), make).map_err(Error::wrap)?,
            place,
            initial: sequence.s0.is_some(),
            lengths: sequence.lengths,
            resets: sequence.resets,
            all_states: self.all_states,
        })
    }

    /// Checks the shape of wx, and returns the shapes of all tensors.
    pub(crate) fn shapes_of(&self, wx: &Tensor) -> Result<Shapes> {
        let &[outer, inner, _, heads, head_dim] = wx.dims() else {
            let order = self.order();
            return Err(Error::msg(format!(
                "wx: got shape {:?}, wanted [{order}, Gx, N, D]",
                wx.dims()
            )));
        };
        let shapes =
            self.problem([outer, inner], heads, head_dim).shapes::<C>().map_err(Error::wrap)?;
        check("wx", wx, &shapes.wx())?;
        Ok(shapes)
    }

    /// Makes the problem for tensors whose first two axes have the sizes `outer`.
    pub(crate) fn problem(&self, outer: [usize; 2], heads: usize, head_dim: usize) -> Problem {
        let [batch, time] = match self.options.layout {
            Layout::BatchMajor => outer,
            Layout::TimeMajor => [outer[1], outer[0]],
        };
        Problem::new(batch, time, heads, head_dim).with(self.options)
    }

    /// Returns the names of the first two axes.
    pub(crate) fn order(&self) -> &'static str {
        match self.options.layout {
            Layout::BatchMajor => "B, T",
            Layout::TimeMajor => "T, B",
        }
    }
}

/// Checks that r and b, or the parts of both, have the same element type.
pub(crate) fn same_type(weights: &[&Tensor]) -> Result<()> {
    let Some((r, others)) = weights.split_first() else { return Ok(()) };
    let (dtype, other) = (r.dtype(), others.iter().find(|b| b.dtype() != r.dtype()));
    other.map_or(Ok(()), |b| {
        Err(Error::msg(format!("b is {:?}, wanted {dtype:?} like r", b.dtype())))
    })
}

/// Where wx comes from. All tensors are contiguous.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    Wx(&'a Tensor),
    /// The product of x and w, with a mask of the padding.
    Product {
        x: &'a Tensor,
        w: &'a Tensor,
        mask: Option<&'a Tensor>,
    },
}

impl Source<'_> {
    fn dtype(&self) -> DType {
        match self {
            Self::Wx(wx) => wx.dtype(),
            Self::Product { x, .. } => x.dtype(),
        }
    }

    fn track_op(&self) -> bool {
        match self {
            Self::Wx(wx) => wx.track_op(),
            Self::Product { x, w, .. } => x.track_op() || w.track_op(),
        }
    }

    /// Returns wx, which is not connected to any variable if it is a product.
    fn compute(&self, shapes: &Shapes) -> Result<(Tensor, Option<Product>)> {
        match *self {
            Self::Wx(wx) => Ok((wx.clone(), None)),
            Self::Product { x, w, mask } => {
                let (wx, product) = Product::forward(x, w, &shapes.wx(), mask.cloned())?;
                Ok((wx, Some(product)))
            }
        }
    }
}
