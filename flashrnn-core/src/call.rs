//! The constructors of a plan's calls, and the checks that every backend runs first.

use crate::{
    Backend, Backward, Element, Error, Forward, Len, Plan, Result, Save, SavedRef, Shapes, Step,
    Weights, Workspace,
};

impl<'a, B: Backend, T: Element> Forward<'a, B, T> {
    /// Makes a call without optional tensors. Add the tensors you need by struct update.
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
