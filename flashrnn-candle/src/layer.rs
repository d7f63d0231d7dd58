//! One layer in one direction: the input product and the recurrence.

use candle_core::{DType, Error, Result, Tensor};
use flashrnn::{Cell, CellSizes, Shapes};

use crate::config::LayerSize;
use crate::frozen_layer::FrozenLayer;
use crate::parameters::Parameters;
use crate::place::Place;
use crate::product::padding_mask;
use crate::recurrence::Source;
use crate::sequence::Sequence;
use crate::{Output, Recurrence, SequenceOptions, Weights};

/// A layer in one direction, which computes `wx = W x` and then [`Recurrence::forward`].
///
/// It reads its parameters on every call, so it follows an optimiser that updates them.
#[derive(Clone, Debug)]
pub(crate) struct Layer<C> {
    pub recurrence: Recurrence<C>,
    pub size: LayerSize,
    pub parameters: Parameters,
}

impl<C: Cell> Layer<C> {
    /// Runs the layer over `x [B, T, I]` (or time-major).
    pub fn forward(&self, x: &Tensor, options: &SequenceOptions) -> Result<Output> {
        let shapes = self.shapes_of(x)?;
        let w = self.parameters.w();
        let weights = self.parameters.recurrent()?;
        let weights: Vec<&Tensor> = weights.iter().collect();
        let named = [("x", x), ("w", w)].into_iter();
        let named = named.chain(weights.iter().map(|&weight| ("r or b", weight)));
        let place = Place::of(self.recurrence.backend(), named.chain(options.tensors()))?;
        let sequence = Sequence::read(options, &shapes)?;
        check_types(x.dtype(), w.dtype())?;
        let mask = padding_mask(&shapes, sequence.lengths.as_ref().filter(|_| w.track_op()))?;
        let (x, w) = (x.contiguous()?, w.contiguous()?);
        let source = Source::Product { x: &x, w: &w, mask: mask.as_ref() };
        self.recurrence.differentiable(place, &source, &weights, &shapes, sequence)
    }

    /// Returns this layer with every state in its [`Output`].
    pub fn with_all_states(&self) -> Self {
        Self { recurrence: self.recurrence.clone().all_states(true), ..self.clone() }
    }

    /// Packs the parameters once for inference.
    pub fn freeze(&self) -> Result<FrozenLayer> {
        let LayerSize { heads, head_dim, .. } = self.size;
        let shapes =
            self.recurrence.problem([1, 1], heads, head_dim).shapes::<C>().map_err(Error::wrap)?;
        let w = self.parameters.w();
        let (r, b) = self.parameters.r_and_b()?;
        let frozen = self.recurrence.freeze_flat(&r, &b, w.dtype(), &shapes)?;
        FrozenLayer::new(frozen, w, [C::GX, heads, head_dim])
    }

    /// Returns the parameters in flashrnn's order.
    pub fn weights(&self) -> Result<Weights> {
        let LayerSize { heads, head_dim, .. } = self.size;
        let (r, b) = self.parameters.r_and_b()?;
        Ok(Weights {
            w: self.parameters.w().clone(),
            r: r.reshape((C::GR, heads, head_dim, head_dim))?,
            b: b.reshape((C::G, heads, head_dim))?,
        })
    }

    fn shapes_of(&self, x: &Tensor) -> Result<Shapes> {
        let LayerSize { input, heads, head_dim } = self.size;
        match x.dims() {
            &[outer, inner, features] if features == input => {
                let problem = self.recurrence.problem([outer, inner], heads, head_dim);
                problem.shapes::<C>().map_err(Error::wrap)
            }
            got => {
                let order = self.recurrence.order();
                Err(Error::msg(format!("x: got shape {got:?}, wanted [{order}, {input}]")))
            }
        }
    }
}

/// Checks that the type of x fits that of the parameters.
fn check_types(x: DType, parameters: DType) -> Result<()> {
    let master = parameters == DType::F32 && matches!(x, DType::F16 | DType::BF16);
    if x == parameters || master {
        return Ok(());
    }
    let or = if parameters == DType::F32 { ", or F16 or BF16" } else { "" };
    Err(Error::msg(format!("x is {x:?}, wanted {parameters:?} like the parameters{or}")))
}
