//! Runs a case on a backend, with every output buffer filled with NaN beforehand.

use flashrnn_core::{
    Backend, Backward, Cell, Element, Forward, Plan, Result, Save, SavedMut, SavedRef, Weights,
    Workspace,
};

use crate::case::Case;
use crate::results::Results;

/// Plans and packs `case`, and runs it forward and backward on `backend`. Returns `h`, `states`,
/// `last`, `d_wx`, `d_r`, `d_b` and `d_s0`.
///
/// Every buffer that the backend has to write, including the saved ones, is filled with NaN
/// beforehand to expose elements it does not write.
///
/// # Errors
/// Any error of the backend.
pub fn run<B: Backend, C: Cell, T: Element, W: Element>(
    backend: &B,
    cell: &C,
    case: &Case,
) -> Result<Results> {
    let plan = backend.plan::<T, W, C>(cell, &case.problem)?;
    let pass = ForwardPass::<B, T>::forward(backend, &plan, case, CallOptions::default())?;
    let mut results = pass.outputs(backend)?;
    results.extend(pass.backward(backend, &plan, case, CallOptions::default())?);
    Ok(results)
}

/// A completed forward pass, with everything its backward pass needs.
pub struct ForwardPass<B: Backend, T: Element> {
    weights: Weights<B, T>,
    wx: B::Buffer<T>,
    s0: Option<B::Buffer<T::Wide>>,
    lengths: Option<B::Buffer<i32>>,
    resets: Option<B::Buffer<u8>>,
    states: B::Buffer<T>,
    h: B::Buffer<T>,
    last: B::Buffer<T::Wide>,
    /// The gates of [`Saved`](flashrnn_core::Saved), in memory owned by the caller.
    gates: B::Buffer<T>,
    /// The wide part of [`Saved`](flashrnn_core::Saved), in memory owned by the caller.
    wide: B::Buffer<T::Wide>,
}

/// Selects optional arguments of the passes.
#[derive(Clone, Copy, Debug, Default)]
pub struct CallOptions<'a> {
    /// Whether to pass workspaces of the sizes that the plan requires, filled with NaN.
    pub workspace: bool,
    /// Whether to pass `d_h`, the first part of `d_states`, instead of `d_states`.
    pub h_only: bool,
    /// Initial values of `d_r` and `d_b` to accumulate into.
    pub add_to: Option<(&'a [f64], &'a [f64])>,
}

impl<B: Backend, T: Element> ForwardPass<B, T> {
    /// Uploads the inputs of `case`, packs its weights, and runs the forward pass.
    ///
    /// # Errors
    /// Any error of the backend.
    pub fn forward<W: Element>(
        backend: &B,
        plan: &B::Plan<T, W>,
        case: &Case,
        options: CallOptions<'_>,
    ) -> Result<Self> {
        let shapes = plan.shapes();
        let x = &case.inputs;
        let (r, b) = (upload::<B, W>(backend, &x.r)?, upload::<B, W>(backend, &x.b)?);
        let [gates, wide] = shapes.saved::<T>(plan.problem().options.save);
        let mut workspace = workspace(backend, plan.forward_workspace(), options)?;
        let mut pass = Self {
            weights: plan.pack(backend.view(&r), backend.view(&b))?,
            wx: upload(backend, &x.wx)?,
            s0: x.s0.as_ref().map(|s0| upload(backend, s0)).transpose()?,
            lengths: x.lengths.as_ref().map(|lengths| backend.upload(lengths)).transpose()?,
            resets: x.resets.as_ref().map(|resets| backend.upload(resets)).transpose()?,
            states: poison(backend, shapes.states().iter().product())?,
            h: poison(backend, shapes.h().iter().product())?,
            last: poison(backend, shapes.state().iter().product())?,
            gates: poison(backend, gates)?,
            wide: poison(backend, wide)?,
        };
        plan.forward(Forward {
            s0: pass.s0.as_ref().map(|s0| backend.view(s0)),
            lengths: pass.lengths.as_ref().map(|lengths| backend.view(lengths)),
            resets: pass.resets.as_ref().map(|resets| backend.view(resets)),
            h: Some(backend.view_mut(&mut pass.h)),
            states: Some(backend.view_mut(&mut pass.states)),
            last: Some(backend.view_mut(&mut pass.last)),
            saved: Some(SavedMut {
                gates: backend.view_mut(&mut pass.gates),
                wide: backend.view_mut(&mut pass.wide),
            }),
            workspace: workspace.as_mut().map(|workspace| backend.view_mut(workspace)),
            ..Forward::new(&pass.weights, backend.view(&pass.wx))
        })?;
        Ok(pass)
    }

    /// Downloads `h`, `states` and `last`.
    ///
    /// # Errors
    /// Any error of the backend.
    pub fn outputs(&self, backend: &B) -> Result<Results> {
        let mut results = Results::default();
        results.push("h", download(backend, &self.h)?);
        results.push("states", download(backend, &self.states)?);
        results.push("last", download(backend, &self.last)?);
        Ok(results)
    }

    /// Runs the backward pass and returns `d_wx`, `d_r`, `d_b` and `d_s0`.
    ///
    /// # Errors
    /// Any error of the backend.
    pub fn backward<W: Element>(
        &self,
        backend: &B,
        plan: &B::Plan<T, W>,
        case: &Case,
        options: CallOptions<'_>,
    ) -> Result<Results> {
        let shapes = plan.shapes();
        let size = |shape: &[usize]| shape.iter().product::<usize>();
        let all = case.d.d_states.as_deref();
        let h_only = all.map(|d| &d[..size(&shapes.h())]).filter(|_| options.h_only);
        let d_h = h_only.map(|d| upload::<B, T>(backend, d)).transpose()?;
        let d_states =
            all.filter(|_| !options.h_only).map(|d| upload::<B, T>(backend, d)).transpose()?;
        let d_last =
            case.d.d_last.as_ref().map(|d| upload::<B, T::Wide>(backend, d)).transpose()?;
        let mut d_wx = poison::<B, T>(backend, size(&shapes.wx()))?;
        let (mut d_r, mut d_b) = match options.add_to {
            None => (
                poison::<B, W>(backend, size(&shapes.r()))?,
                poison::<B, W>(backend, size(&shapes.b()))?,
            ),
            Some((d_r, d_b)) => (upload::<B, W>(backend, d_r)?, upload::<B, W>(backend, d_b)?),
        };
        let mut d_s0 = poison::<B, T::Wide>(backend, size(&shapes.state()))?;
        let saved = SavedRef { gates: backend.view(&self.gates), wide: backend.view(&self.wide) };
        let mut workspace = workspace(backend, plan.backward_workspace(), options)?;
        plan.backward(Backward {
            // With Save::Gates, a backend must not need wx.
            wx: (plan.problem().options.save == Save::Recompute).then(|| backend.view(&self.wx)),
            s0: self.s0.as_ref().map(|s0| backend.view(s0)),
            lengths: self.lengths.as_ref().map(|lengths| backend.view(lengths)),
            resets: self.resets.as_ref().map(|resets| backend.view(resets)),
            d_h: d_h.as_ref().map(|d_h| backend.view(d_h)),
            d_states: d_states.as_ref().map(|d_states| backend.view(d_states)),
            d_last: d_last.as_ref().map(|d_last| backend.view(d_last)),
            d_r: Some(backend.view_mut(&mut d_r)),
            d_b: Some(backend.view_mut(&mut d_b)),
            d_s0: Some(backend.view_mut(&mut d_s0)),
            accumulate: options.add_to.is_some(),
            workspace: workspace.as_mut().map(|workspace| backend.view_mut(workspace)),
            ..Backward::new(
                &self.weights,
                backend.view(&self.states),
                saved,
                backend.view_mut(&mut d_wx),
            )
        })?;
        let mut results = Results::default();
        results.push("d_wx", download(backend, &d_wx)?);
        results.push("d_r", download(backend, &d_r)?);
        results.push("d_b", download(backend, &d_b)?);
        results.push("d_s0", download(backend, &d_s0)?);
        Ok(results)
    }
}

/// Allocates a workspace with every bit set, if `options` asks for one.
fn workspace<B: Backend>(
    backend: &B,
    size: Workspace,
    options: CallOptions<'_>,
) -> Result<Option<B::Buffer<u8>>> {
    // A backend's own buffers have every alignment that it requires.
    options.workspace.then(|| backend.upload(&vec![0xff; size.bytes])).transpose()
}

/// Allocates a buffer and fills it with `values` rounded to `P`.
///
/// # Errors
/// Any error of the backend.
pub fn upload<B: Backend, P: Element>(backend: &B, values: &[f64]) -> Result<B::Buffer<P>> {
    backend.upload(&values.iter().map(|&v| P::from_f64(v)).collect::<Vec<_>>())
}

/// Allocates a buffer of `len` elements and fills it with NaN.
///
/// # Errors
/// Any error of the backend.
pub fn poison<B: Backend, P: Element>(backend: &B, len: usize) -> Result<B::Buffer<P>> {
    backend.upload(&vec![P::from_f64(f64::NAN); len])
}

/// Downloads a buffer as f64.
///
/// # Errors
/// Any error of the backend.
pub fn download<B: Backend, P: Element>(backend: &B, buffer: &B::Buffer<P>) -> Result<Vec<f64>> {
    Ok(backend.download(backend.view(buffer))?.into_iter().map(P::to_f64).collect())
}
