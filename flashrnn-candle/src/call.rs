//! One call of a plan on host memory, used by the differentiable operation and by frozen weights.

use std::sync::Arc;

use bytemuck::Pod;
use candle_core::{Error, Result};
use flashrnn::any::{AnyBuffer, AnyPlan, AnyView};
use flashrnn::{AnyBackend, Backend, Element, Forward, Plan, Saved, Shapes, Weights};

use crate::host::Number;
use crate::staging::{Staged, into_vec, stage};

/// A plan with the arguments of a call that are not float tensors. `T` is the element type of wx,
/// and `W` that of r and b.
pub(crate) struct Call<T: Number, W: Number> {
    pub backend: AnyBackend,
    pub plan: Arc<AnyPlan<T, W>>,
    /// `[B]`
    pub lengths: Option<Vec<i32>>,
    /// `[B, T]`, or `[T, B]`
    pub resets: Option<Vec<u8>>,
    /// Whether the outputs start with every state instead of h alone.
    pub all_states: bool,
}

/// The outputs of a forward pass.
pub(crate) struct ForwardOutput<T: Number> {
    /// h `[B, T, N, D]`, or with `all_states` the states `[S, B, T, N, D]`
    pub head: Vec<T>,
    /// `[S, B, N, D]`
    pub last: Vec<T::Wide>,
    /// Present if a backward pass may follow.
    pub activations: Option<Activations<T>>,
}

/// The memory that a forward pass keeps for its backward passes.
pub(crate) struct Activations<T: Number> {
    /// `[S, B, T, N, D]`
    pub states: AnyBuffer<T>,
    pub saved: Saved<AnyBackend, T>,
}

/// The lengths and resets of a call, in memory that the backend can read.
pub(crate) struct Masks<'a> {
    lengths: Option<Staged<'a, i32>>,
    resets: Option<Staged<'a, u8>>,
}

impl Masks<'_> {
    pub fn lengths(&self) -> Option<AnyView<'_, i32>> {
        self.lengths.as_ref().map(Staged::view)
    }

    pub fn resets(&self) -> Option<AnyView<'_, u8>> {
        self.resets.as_ref().map(Staged::view)
    }
}

impl<T: Number, W: Number> Call<T, W> {
    pub fn shapes(&self) -> &Shapes {
        self.plan.shapes()
    }

    /// Returns the number of output elements before `last`.
    pub fn head_len(&self) -> usize {
        let shapes = self.shapes();
        let steps = shapes.tokens() * shapes.units();
        if self.all_states { shapes.states * steps } else { steps }
    }

    pub fn alloc<P: Element>(&self, len: usize) -> Result<AnyBuffer<P>> {
        self.backend.alloc(len).map_err(Error::wrap)
    }

    pub fn stage<'a, P: Pod + Send + Sync>(&self, data: &'a [P]) -> Result<Staged<'a, P>> {
        stage(&self.backend, data)
    }

    /// Moves a buffer's elements to a `Vec`; copies only from a GPU.
    pub fn read<P: Element>(&self, buffer: AnyBuffer<P>) -> Result<Vec<P>> {
        into_vec(&self.backend, buffer)
    }

    pub fn masks(&self) -> Result<Masks<'_>> {
        Ok(Masks {
            lengths: self.lengths.as_deref().map(|lengths| self.stage(lengths)).transpose()?,
            resets: self.resets.as_deref().map(|resets| self.stage(resets)).transpose()?,
        })
    }

    pub fn pack(&self, r: &[W], b: &[W]) -> Result<Weights<AnyBackend, T>> {
        let (r, b) = (self.stage(r)?, self.stage(b)?);
        self.plan.pack(r.view(), b.view()).map_err(Error::wrap)
    }

    /// Runs the forward pass. With `save`, keeps what a backward pass needs.
    pub fn forward(
        &self,
        weights: &Weights<AnyBackend, T>,
        wx: &[T],
        s0: Option<&AnyBuffer<T::Wide>>,
        save: bool,
    ) -> Result<ForwardOutput<T>> {
        let shapes = self.shapes();
        let mut saved = if save { Some(self.plan.saved().map_err(Error::wrap)?) } else { None };
        let buffer = |wanted: bool, shape: &[usize]| {
            wanted.then(|| self.alloc::<T>(shape.iter().product())).transpose()
        };
        let mut states = buffer(save || self.all_states, &shapes.states())?;
        let mut h = buffer(!self.all_states, &shapes.h())?;
        let mut last = self.alloc(shapes.state().iter().product())?;
        let wx = self.stage(wx)?;
        let masks = self.masks()?;
        self.plan
            .forward(Forward {
                s0: s0.map(AnyBuffer::view),
                lengths: masks.lengths(),
                resets: masks.resets(),
                h: h.as_mut().map(AnyBuffer::view_mut),
                states: states.as_mut().map(AnyBuffer::view_mut),
                last: Some(last.view_mut()),
                saved: saved.as_mut().map(Saved::view_mut),
                ..Forward::new(weights, wx.view())
            })
            .map_err(Error::wrap)?;
        let last = self.read(last)?;
        let (head, states) = match (h, states) {
            (Some(h), states) => (self.read(h)?, states),
            (None, Some(states)) if save => {
                (self.backend.download(states.view()).map_err(Error::wrap)?, Some(states))
            }
            (None, Some(states)) => (self.read(states)?, None),
            (None, None) => return Err(Error::msg("flashrnn: a call without outputs")),
        };
        let activations = states.zip(saved).map(|(states, saved)| Activations { states, saved });
        Ok(ForwardOutput { head, last, activations })
    }
}
