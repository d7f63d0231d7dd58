//! One call of a plan on candle's tensors, used by the differentiable operation and by frozen
//! weights.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Error, Result, Storage, Tensor};
use flashrnn::any::{AnyBuffer, AnyPlan};
use flashrnn::{AnyBackend, Backward, Forward, Plan, Save, SavedMut, SavedRef, Shapes, Weights};

use crate::place::{Input, Memory, Place};
use crate::storage::{Locked, Number, plain, scatter};

/// A plan with the arguments of a call that are not float tensors. `T` is the element type of wx,
/// and `W` that of r and b.
pub(crate) struct Call<T: Number, W: Number> {
    pub place: Place,
    pub plan: Arc<AnyPlan<T, W>>,
    /// Whether there is an initial state.
    pub initial: bool,
    /// `[B]` of U32
    pub lengths: Option<Tensor>,
    /// `[B, T]`, or `[T, B]`, of U8
    pub resets: Option<Tensor>,
    /// Whether the outputs start with every state instead of h alone.
    pub all_states: bool,
}

/// The weights and the initial state of a call.
pub(crate) enum Rest<'a, T: Number> {
    /// One tensor of `W` with s0 (if there is one, which makes `W` the wide type of `T`), r and b.
    Joined(&'a Tensor),
    /// Packed weights, and s0.
    Frozen(&'a Weights<AnyBackend, T>, Option<&'a AnyBuffer<T::Wide>>),
}

/// The outputs of a forward pass.
pub(crate) struct ForwardOutput<T: Number> {
    /// h `[B, T, N, D]`, or with `all_states` the states `[S, B, T, N, D]`. The storage may hold
    /// more, which a backward pass reads.
    pub head: Storage,
    /// `[S, B, N, D]` of `T::Wide`
    pub last: Storage,
    /// Present if a backward pass may follow.
    pub activations: Option<Activations<T>>,
}

/// The memory that a forward pass keeps for its backward passes, besides the first output.
pub(crate) struct Activations<T: Number> {
    weights: Weights<AnyBackend, T>,
    saved: SavedMemory<T>,
}

/// The memory in which a forward pass saves values.
struct SavedMemory<T: Number> {
    /// `[S, B, T, N, D]`. Absent if the storage of the first output holds the states.
    states: Option<AnyBuffer<T>>,
    /// See [`flashrnn::Saved`].
    gates: AnyBuffer<T>,
    wide: AnyBuffer<T::Wide>,
}

/// The memory that a forward pass writes.
struct Written<T: Number> {
    head: Memory<T, 1>,
    last: Memory<T::Wide, 1>,
    /// Present if a backward pass may follow.
    saved: Option<SavedMemory<T>>,
}

/// The first output of a call, and the gradients that reach the outputs.
pub(crate) struct OutputGradients<'a> {
    pub output: &'a Tensor,
    /// Of h, or with `all_states` of the states.
    pub head: Option<&'a Tensor>,
    /// `[S, B, N, D]`
    pub last: &'a Tensor,
}

/// The gradients of the inputs of a call.
pub(crate) struct InputGradients {
    pub wx: Storage,
    /// Of the tensor with s0, r and b.
    pub rest: Storage,
}

impl<T: Number, W: Number> Call<T, W> {
    pub fn shapes(&self) -> &Shapes {
        self.plan.shapes()
    }

    /// Returns whether the backward pass reads wx again.
    pub fn recomputes(&self) -> bool {
        self.plan.problem().options.save == Save::Recompute
    }

    /// Returns the shape of the first output.
    pub fn head_shape(&self) -> Vec<usize> {
        let shapes = self.shapes();
        if self.all_states { shapes.states().to_vec() } else { shapes.h().to_vec() }
    }

    /// Returns the lengths of s0 (0 if there is none), r and b.
    fn lens(&self) -> [usize; 3] {
        let shapes = self.shapes();
        let s0 = if self.initial { shapes.state().iter().product() } else { 0 };
        [s0, shapes.r().iter().product(), shapes.b().iter().product()]
    }

    /// Returns where s0, r and b are in the tensor that holds all of them.
    fn ranges(&self) -> [Range<usize>; 3] {
        let [s0, r, b] = self.lens();
        [0..s0, s0..s0 + r, s0 + r..s0 + r + b]
    }

    /// Packs r and b.
    pub fn pack(&self, r: &Tensor, b: &Tensor) -> Result<Weights<AnyBackend, T>> {
        let (r, b) = (Locked::new(r), Locked::new(b));
        let r = self.place.input::<W>(&r, 0..r.len())?;
        let b = self.place.input::<W>(&b, 0..b.len())?;
        self.place.run(|| self.plan.pack(r.view(), b.view()).map_err(Error::wrap))
    }

    /// Runs the forward pass for a contiguous wx. With `save` and joined weights, keeps what a
    /// backward pass needs.
    pub fn forward(&self, wx: &Tensor, rest: Rest<'_, T>, save: bool) -> Result<ForwardOutput<T>> {
        let place = &self.place;
        let wx = Locked::new(wx);
        let wx = place.input::<T>(&wx, 0..wx.len())?;
        let joined = match &rest {
            Rest::Joined(rest) => Some(Locked::new(rest)),
            Rest::Frozen(..) => None,
        };
        let [s0_range, r, b] = self.ranges();
        let weights = joined.as_ref().map(|joined| {
            Ok::<_, Error>((place.input::<W>(joined, r)?, place.input::<W>(joined, b)?))
        });
        let weights = weights.transpose()?;
        let s0 = joined.as_ref().filter(|_| self.initial);
        let s0 = s0.map(|joined| place.input::<T::Wide>(joined, s0_range)).transpose()?;
        let masks = self.masks();
        let masks = masks.inputs(place)?;

        let Written { mut head, mut last, mut saved } = self.alloc(save)?;
        let packed = {
            let (mut head, mut last) = (place.borrow_mut(&mut head), place.borrow_mut(&mut last));
            place.run(|| {
                let packed = weights.as_ref().map(|(r, b)| self.plan.pack(r.view(), b.view()));
                let packed = packed.transpose().map_err(Error::wrap)?;
                let (weights, frozen_s0) = match (&packed, &rest) {
                    (Some(packed), _) => (packed, None),
                    (None, Rest::Frozen(weights, s0)) => (*weights, *s0),
                    (None, Rest::Joined(_)) => return Err(Error::msg("flashrnn: no weights")),
                };
                let (mut states, saved) = match &mut saved {
                    None => (None, None),
                    Some(SavedMemory { states, gates, wide }) => {
                        let saved = SavedMut { gates: gates.view_mut(), wide: wide.view_mut() };
                        (states.as_mut().map(AnyBuffer::view_mut), Some(saved))
                    }
                };
                let mut h = head.views().next();
                if self.all_states || (save && states.is_none()) {
                    states = states.or(h.take());
                }
                let call = Forward {
                    s0: s0.as_ref().map(Input::view).or(frozen_s0.map(AnyBuffer::view)),
                    lengths: masks.lengths.as_ref().map(Input::view),
                    resets: masks.resets.as_ref().map(Input::view),
                    h: h.filter(|_| !self.all_states),
                    states,
                    last: last.views().next(),
                    saved,
                    ..Forward::new(weights, wx.view())
                };
                self.plan.forward(call).map_err(Error::wrap)?;
                Ok(packed)
            })?
        };
        let head = match &saved {
            // Saved states that are the output as well.
            Some(SavedMemory { states: Some(states), .. }) if self.all_states => {
                place.copy(states, self.states_len())?
            }
            _ => place.storage(head)?,
        };
        let activations = packed.zip(saved);
        let activations = activations.map(|(weights, saved)| Activations { weights, saved });
        Ok(ForwardOutput { head, last: place.storage(last)?, activations })
    }

    /// Allocates what a forward pass writes.
    ///
    /// Where the backend works in candle's memory, the saved states and the first output share it:
    /// h is the first of the states.
    fn alloc(&self, save: bool) -> Result<Written<T>> {
        let (place, shapes) = (&self.place, self.shapes());
        let [gates, wide] = shapes.saved::<T>(self.plan.problem().options.save);
        let separate = save && !place.is_in_place();
        let states = separate.then(|| place.scratch(self.states_len())).transpose()?;
        let saved = if save {
            Some(SavedMemory { states, gates: place.scratch(gates)?, wide: place.scratch(wide)? })
        } else {
            None
        };
        let head = match (self.all_states, separate) {
            (true, true) => 0, // a copy of the states
            (false, false) if save => self.states_len(),
            _ => self.head_shape().iter().product(),
        };
        let last = shapes.state().iter().product();
        Ok(Written { head: place.alloc([head])?, last: place.alloc([last])?, saved })
    }

    fn states_len(&self) -> usize {
        self.shapes().states().iter().product()
    }

    /// Runs the backward pass. `wx` is present if it recomputes. `rest` is the joined tensor of the
    /// forward pass. All tensors are contiguous.
    pub fn backward(
        &self,
        activations: &Activations<T>,
        wx: Option<&Tensor>,
        rest: &Tensor,
        d: &OutputGradients<'_>,
    ) -> Result<InputGradients> {
        let place = &self.place;
        let shapes = self.shapes();
        let wx = wx.map(Locked::new);
        let wx = wx.as_ref().map(|wx| place.input::<T>(wx, 0..wx.len())).transpose()?;
        let rest = Locked::new(rest);
        let [s0_range, ..] = self.ranges();
        let s0 = self.initial.then(|| place.input::<T::Wide>(&rest, s0_range)).transpose()?;
        let masks = self.masks();
        let masks = masks.inputs(place)?;
        let d_head = d.head.map(Locked::new);
        let d_head = d_head.as_ref().map(|d| place.input::<T>(d, 0..d.len())).transpose()?;
        let output = Locked::stored(d.output, self.states_len());
        let states = match &activations.saved.states {
            Some(_) => None,
            None => Some(place.input::<T>(&output, 0..self.states_len())?),
        };
        let d_last = Locked::new(d.last);
        let d_last = place.input::<T::Wide>(&d_last, 0..d_last.len())?;

        let mut d_wx = place.alloc::<T, 1>([shapes.wx().iter().product()])?;
        // s0 is present only if `W` is the wide type.
        let [s0_len, r_len, b_len] = self.lens();
        let mut d_s0 = place.alloc::<T::Wide, 1>([s0_len])?;
        let mut d_weights = place.alloc::<W, 2>([r_len, b_len])?;
        {
            let mut d_wx = place.borrow_mut(&mut d_wx);
            let mut d_s0 = place.borrow_mut(&mut d_s0);
            let mut d_weights = place.borrow_mut(&mut d_weights);
            place.run(|| {
                let head = d_head.as_ref().map(Input::view);
                let (d_h, d_states) = if self.all_states { (None, head) } else { (head, None) };
                let Activations { weights, saved } = activations;
                let states = match (&states, &saved.states) {
                    (Some(states), _) => states.view(),
                    (None, Some(states)) => states.view(),
                    (None, None) => return Err(Error::msg("flashrnn: no states")),
                };
                let saved = SavedRef { gates: saved.gates.view(), wide: saved.wide.view() };
                let d_wx = d_wx.views().next().ok_or_else(|| Error::msg("flashrnn: no memory"))?;
                let mut d_weights = d_weights.views();
                let call = Backward {
                    wx: wx.as_ref().map(Input::view),
                    s0: s0.as_ref().map(Input::view),
                    lengths: masks.lengths.as_ref().map(Input::view),
                    resets: masks.resets.as_ref().map(Input::view),
                    d_h,
                    d_states,
                    d_last: Some(d_last.view()),
                    d_r: d_weights.next(),
                    d_b: d_weights.next(),
                    d_s0: d_s0.views().next().filter(|_| self.initial),
                    ..Backward::new(weights, states, saved, d_wx)
                };
                self.plan.backward(call).map_err(Error::wrap)
            })?;
        }
        let d_weights = place.storage(d_weights)?;
        let rest = if self.initial {
            let d_s0 = plain(place.storage(d_s0)?, s0_len);
            let d_weights = plain(d_weights, r_len + b_len);
            scatter(&[(0, d_s0.clone()), (s0_len, d_weights)], s0_len + r_len + b_len, &d_s0)?
        } else {
            d_weights
        };
        Ok(InputGradients { wx: place.storage(d_wx)?, rest })
    }

    /// Locks the lengths and resets.
    fn masks(&self) -> LockedMasks<'_> {
        LockedMasks {
            lengths: self.lengths.as_ref().map(Locked::new),
            resets: self.resets.as_ref().map(Locked::new),
        }
    }
}

/// Lengths and resets, locked for reading.
struct LockedMasks<'a> {
    lengths: Option<Locked<'a>>,
    resets: Option<Locked<'a>>,
}

/// Lengths and resets that the backend can read.
struct Masks<'a> {
    lengths: Option<Input<'a, i32>>,
    resets: Option<Input<'a, u8>>,
}

impl LockedMasks<'_> {
    fn inputs<'a>(&'a self, place: &'a Place) -> Result<Masks<'a>> {
        let (lengths, resets) = (self.lengths.as_ref(), self.resets.as_ref());
        Ok(Masks {
            lengths: lengths.map(|lengths| place.lengths(lengths)).transpose()?,
            resets: resets.map(|resets| place.input(resets, 0..resets.len())).transpose()?,
        })
    }
}
