//! The operator on candle's tensors. Checks the arguments and wraps the packed operation.

use std::sync::Arc;

use candle_core::{DType, Error, Result, Tensor, WithDType};
use flashrnn::{AnyBackend, Backend, Cell, Cpu, Layout, Options, Problem, Shapes};

use crate::call::Call;
use crate::host::{Number, check, on_host};
use crate::join::concat;
use crate::op::Op;
use crate::plans::Plans;
use crate::sequence::Sequence;
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

    /// Makes the recurrence of `cell` on `backend`: batch-major, with every option off.
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
    /// If a tensor has the wrong shape or type or is not on the CPU, a length is outside 0 to T, an
    /// option is invalid, or memory runs out.
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
        let sequence = Sequence::read(options, &shapes)?;
        self.differentiable(wx, r, b, &shapes, sequence)
    }

    /// Runs the recurrence as a candle operation. `r` and `b` must have the numbers of elements
    /// given by `shapes`, but may have any shape.
    pub(crate) fn differentiable(
        &self,
        wx: &Tensor,
        r: &Tensor,
        b: &Tensor,
        shapes: &Shapes,
        sequence: Sequence<'_>,
    ) -> Result<Output> {
        on_host([("wx", wx), ("r", r), ("b", b)])?;
        by_types!(wx.dtype(), r.dtype(), self.run(wx, r, b, shapes, sequence))
    }

    fn run<T: Number, W: Number>(
        &self,
        wx: &Tensor,
        r: &Tensor,
        b: &Tensor,
        shapes: &Shapes,
        sequence: Sequence<'_>,
    ) -> Result<Output> {
        same_type(r, b)?;
        let wide = <T::Wide as WithDType>::DTYPE;
        let (wx, r) = (wx.contiguous()?, r.contiguous()?);
        let rest = match sequence.s0 {
            None => b.contiguous()?,
            Some(s0) => concat(&b.to_dtype(wide)?, &s0.to_dtype(wide)?)?,
        };
        let differentiable = wx.track_op() || r.track_op() || rest.track_op();
        let initial = sequence.s0.is_some();
        let call = self.call::<T, W>(shapes, sequence)?;
        let head_len = call.head_len();
        // packed: [S·B·T·N·D or B·T·N·D, then S·B·N·D]
        let packed = wx.apply_op3(&r, &rest, Op::new(call, initial, differentiable))?;
        let head = packed.narrow(0, 0, head_len)?.to_dtype(wx.dtype())?;
        // Copied, so that keeping `last` does not keep h.
        let last =
            packed.narrow(0, head_len, packed.elem_count() - head_len)?.force_contiguous()?;
        let last = last.reshape(shapes.state().as_slice())?;
        if self.all_states {
            let states = head.reshape(shapes.states().as_slice())?;
            Ok(Output { h: states.get(0)?, last, states: Some(states) })
        } else {
            Ok(Output { h: head.reshape(shapes.h().as_slice())?, last, states: None })
        }
    }

    /// Makes a call for tensors of `shapes`, with a cached plan if there is one.
    pub(crate) fn call<T: Number, W: Number>(
        &self,
        shapes: &Shapes,
        sequence: Sequence<'_>,
    ) -> Result<Call<T, W>> {
        let problem = Problem::new(shapes.batch, shapes.time, shapes.heads, shapes.head_dim)
            .with(self.options);
        let make = || self.backend.plan::<T, W, C>(&self.cell, &problem);
        Ok(Call {
            backend: self.backend.clone(),
            plan: self.plans.get(&problem, make).map_err(Error::wrap)?,
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

/// Checks that r and b have the same element type.
pub(crate) fn same_type(r: &Tensor, b: &Tensor) -> Result<()> {
    if b.dtype() == r.dtype() {
        return Ok(());
    }
    Err(Error::msg(format!("b is {:?}, wanted {:?} like r", b.dtype(), r.dtype())))
}
