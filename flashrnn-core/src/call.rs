//! The arguments of a plan's calls, with the checks that every backend runs first.

use crate::{
    Backend, Element, Error, Len, Plan, Result, Save, SavedMut, SavedRef, Shapes, Weights,
    Workspace,
};

/// The arguments of [`Plan::forward`].
pub struct Forward<'a, B: Backend, T: Element> {
    /// R and b, from [`Plan::pack`].
    pub weights: &'a Weights<B, T>,
    /// `[B, T, Gx, N, D]`, the input pre-activations `W x`.
    pub wx: B::View<'a, T>,
    /// `[S, B, N, D]`, the initial state; zeros if absent.
    pub s0: Option<B::View<'a, T::Wide>>,
    /// `[B]`: row b has `lengths[b]` steps, 0 to T. Later outputs are zero.
    pub lengths: Option<B::View<'a, i32>>,
    /// `[B, T]`: a nonzero flag zeroes the row's state before that step is processed.
    pub resets: Option<B::View<'a, u8>>,
    /// `[B, T, N, D]`, written: h at every step.
    pub h: Option<B::ViewMut<'a, T>>,
    /// `[S, B, T, N, D]`, written: every state at every step. The backward pass needs it.
    pub states: Option<B::ViewMut<'a, T>>,
    /// `[S, B, N, D]`, written: the final state of each row.
    pub last: Option<B::ViewMut<'a, T::Wide>>,
    /// Written: what the backward pass needs besides `states`, which is then required too. The
    /// memory comes from [`Plan::saved`] or from the caller; inference passes `None`.
    pub saved: Option<SavedMut<'a, B, T>>,
    /// Scratch memory of the size given by [`Plan::forward_workspace`]. If absent, the call takes
    /// some from a pool.
    pub workspace: Option<B::ViewMut<'a, u8>>,
}

impl<'a, B: Backend, T: Element> Forward<'a, B, T> {
    /// Makes a call without optional tensors. Add those you need by struct update.
    #[must_use]
    pub fn new(weights: &'a Weights<B, T>, wx: B::View<'a, T>) -> Self {
        Self {
            weights,
            wx,
            s0: None,
            lengths: None,
            resets: None,
            h: None,
            states: None,
            last: None,
            saved: None,
            workspace: None,
        }
    }

    /// Checks the layout of the weights and the size of every tensor. Backends call this first.
    ///
    /// # Errors
    /// [`Error::Argument`] for weights of another layout and for `saved` without `states`,
    /// [`Error::Shape`] for a tensor or workspace of the wrong size.
    pub fn check<W: Element>(&self, plan: &impl Plan<T, W, Backend = B>) -> Result<()> {
        let shapes = plan.shapes();
        self.weights.check(plan.weights_layout())?;
        Shapes::check("wx", self.wx.len(), &shapes.wx())?;
        check("s0", &self.s0, &shapes.state())?;
        check("lengths", &self.lengths, &[shapes.batch])?;
        check("resets", &self.resets, &shapes.resets())?;
        check("h", &self.h, &shapes.h())?;
        check("states", &self.states, &shapes.states())?;
        check("last", &self.last, &shapes.state())?;
        if self.saved.is_some() && self.states.is_none() {
            return Err(Error::Argument {
                tensor: "states",
                why: "required with `saved`, since the backward pass reads both",
            });
        }
        if let Some(saved) = &self.saved {
            saved.check(shapes, plan.problem().options.save)?;
        }
        check_workspace(&self.workspace, || plan.forward_workspace())
    }
}

/// The arguments of [`Plan::backward`]. Every gradient but `d_wx` may be left out.
pub struct Backward<'a, B: Backend, T: Element, W: Element> {
    /// The weights of the forward pass.
    pub weights: &'a Weights<B, T>,
    /// The `states` that the forward pass wrote.
    pub states: B::View<'a, T>,
    /// What the forward pass saved.
    pub saved: SavedRef<'a, B, T>,
    /// The `wx` of the forward pass; required with [`Save::Recompute`] and otherwise unused.
    pub wx: Option<B::View<'a, T>>,
    /// The `s0` of the forward pass.
    pub s0: Option<B::View<'a, T::Wide>>,
    /// The `lengths` of the forward pass.
    pub lengths: Option<B::View<'a, i32>>,
    /// The `resets` of the forward pass.
    pub resets: Option<B::View<'a, u8>>,
    /// `[B, T, N, D]`: the gradient of h at every step. Mutually exclusive with `d_states`.
    pub d_h: Option<B::View<'a, T>>,
    /// `[S, B, T, N, D]`: the gradient of every state at every step. Mutually exclusive with `d_h`.
    pub d_states: Option<B::View<'a, T>>,
    /// `[S, B, N, D]`: the gradient of each row's final state.
    pub d_last: Option<B::View<'a, T::Wide>>,
    /// `[B, T, Gx, N, D]`, written. Steps beyond a row's length are set to 0.
    pub d_wx: B::ViewMut<'a, T>,
    /// `[Gr, N, D_out, D_in]`, written, or added to with `accumulate`.
    pub d_r: Option<B::ViewMut<'a, W>>,
    /// `[G, N, D]`, written, or added to with `accumulate`.
    pub d_b: Option<B::ViewMut<'a, W>>,
    /// `[S, B, N, D]`, written.
    pub d_s0: Option<B::ViewMut<'a, T::Wide>>,
    /// Whether to add to `d_r` and `d_b` instead of overwriting them.
    pub accumulate: bool,
    /// Scratch memory of the size given by [`Plan::backward_workspace`]. If absent, the call takes
    /// some from a pool.
    pub workspace: Option<B::ViewMut<'a, u8>>,
}

impl<'a, B: Backend, T: Element, W: Element> Backward<'a, B, T, W> {
    /// Makes a call that computes only `d_wx`, without any incoming gradient. Add `d_h`, `d_states`
    /// or `d_last`, and further results, by struct update.
    #[must_use]
    pub fn new(
        weights: &'a Weights<B, T>,
        states: B::View<'a, T>,
        saved: SavedRef<'a, B, T>,
        d_wx: B::ViewMut<'a, T>,
    ) -> Self {
        Self {
            weights,
            states,
            saved,
            wx: None,
            s0: None,
            lengths: None,
            resets: None,
            d_h: None,
            d_states: None,
            d_last: None,
            d_wx,
            d_r: None,
            d_b: None,
            d_s0: None,
            accumulate: false,
            workspace: None,
        }
    }

    /// Checks the layout of the weights, and the presence and size of every tensor. Backends call
    /// this first.
    ///
    /// # Errors
    /// [`Error::Argument`] for weights of another layout, a missing `wx`, or both `d_h` and
    /// `d_states`; [`Error::Shape`] for a tensor or workspace of the wrong size.
    pub fn check(&self, plan: &impl Plan<T, W, Backend = B>) -> Result<()> {
        let (shapes, save) = (plan.shapes(), plan.problem().options.save);
        self.weights.check(plan.weights_layout())?;
        if save == Save::Recompute && self.wx.is_none() {
            return Err(Error::Argument {
                tensor: "wx",
                why: "required by the backward pass with Save::Recompute",
            });
        }
        if self.d_h.is_some() && self.d_states.is_some() {
            return Err(Error::Argument {
                tensor: "d_h",
                why: "can't be combined with d_states, which already contains it",
            });
        }
        Shapes::check("states", self.states.len(), &shapes.states())?;
        self.saved.check(shapes, save)?;
        check("wx", &self.wx, &shapes.wx())?;
        check("s0", &self.s0, &shapes.state())?;
        check("lengths", &self.lengths, &[shapes.batch])?;
        check("resets", &self.resets, &shapes.resets())?;
        check("d_h", &self.d_h, &shapes.h())?;
        check("d_states", &self.d_states, &shapes.states())?;
        check("d_last", &self.d_last, &shapes.state())?;
        Shapes::check("d_wx", self.d_wx.len(), &shapes.wx())?;
        check("d_r", &self.d_r, &shapes.r())?;
        check("d_b", &self.d_b, &shapes.b())?;
        check("d_s0", &self.d_s0, &shapes.state())?;
        check_workspace(&self.workspace, || plan.backward_workspace())
    }
}

/// The arguments of [`Plan::step`].
pub struct Step<'a, B: Backend, T: Element> {
    /// R and b, from [`Plan::pack`].
    pub weights: &'a Weights<B, T>,
    /// `[B, Gx, N, D]`, the input pre-activations of this step.
    pub wx: B::View<'a, T>,
    /// `[S, B, N, D]`: the state before the step on entry, after it on return.
    pub state: B::ViewMut<'a, T::Wide>,
    /// `[B, N, D]`, written: h after the step, rounded to `T`.
    pub h: Option<B::ViewMut<'a, T>>,
}

impl<B: Backend, T: Element> Step<'_, B, T> {
    /// Checks the layout of the weights and the size of every tensor. Backends call this first.
    ///
    /// # Errors
    /// [`Error::Argument`] for weights of another layout, [`Error::Shape`] for a tensor of the
    /// wrong size.
    pub fn check<W: Element>(&self, plan: &impl Plan<T, W, Backend = B>) -> Result<()> {
        let shapes = plan.shapes();
        self.weights.check(plan.weights_layout())?;
        let (batch, heads, head_dim) = (shapes.batch, shapes.heads, shapes.head_dim);
        Shapes::check("wx", self.wx.len(), &[batch, shapes.external, heads, head_dim])?;
        Shapes::check("state", self.state.len(), &shapes.state())?;
        check("h", &self.h, &[batch, heads, head_dim])
    }
}

/// Checks the size of a tensor, if there is one.
fn check(tensor: &'static str, view: &Option<impl Len>, want: &[usize]) -> Result<()> {
    view.as_ref().map_or(Ok(()), |view| Shapes::check(tensor, view.len(), want))
}

/// Checks that a workspace, if there is one, is large enough. It may be larger than needed, so that
/// one workspace serves several calls.
fn check_workspace(workspace: &Option<impl Len>, needed: impl FnOnce() -> Workspace) -> Result<()> {
    let Some(workspace) = workspace else { return Ok(()) };
    let Workspace { bytes, .. } = needed();
    if workspace.len() >= bytes {
        return Ok(());
    }
    Err(Error::Shape { tensor: "workspace", got: vec![workspace.len()], want: vec![bytes] })
}
