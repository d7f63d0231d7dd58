//! The reference implementation in f64, which every backend is tested against.
//!
//! It follows the equations one row, one head and one unit at a time, and is slow. It shares no
//! arithmetic with any backend except the cell's.

use crate::cell::Array;
use crate::{Cell, CellSizes, Problem, Result, Shapes};

/// The inputs of a forward pass, batch-major or time-major as in [`Shapes`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inputs {
    /// `[B, T, Gx, N, D]`
    pub wx: Vec<f64>,
    /// `[Gr, N, D_out, D_in]`
    pub r: Vec<f64>,
    /// `[G, N, D]`
    pub b: Vec<f64>,
    /// `[S, B, N, D]`
    pub s0: Option<Vec<f64>>,
    /// `[B]`
    pub lengths: Option<Vec<i32>>,
    /// `[B, T]`
    pub resets: Option<Vec<u8>>,
    /// The [`Element::MAX`](crate::Element::MAX) of a 16-bit element type to simulate: stored
    /// states, saved gates and the h that `R` multiplies saturate there, but are not rounded. If
    /// absent, nothing saturates.
    pub range: Option<f64>,
}

impl Inputs {
    /// Saturates a state or gate as storing it would.
    fn saturate(&self, v: f64) -> f64 {
        self.range.map_or(v, |range| clamp(v, range))
    }
}

/// The results of a forward pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Outputs {
    /// `[S, B, T, N, D]`
    pub states: Vec<f64>,
    /// `[S, B, N, D]`
    pub last: Vec<f64>,
    /// `[B, T, G, N, D]`, saturated except for the cell's wide gates.
    gates: Vec<f64>,
    /// `[S, B, T, N, D]`, saturated except for the cell's wide states.
    saved_states: Vec<f64>,
}

/// The incoming gradients of a backward pass.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OutputGradients {
    /// `[S, B, T, N, D]`, zeros if absent.
    pub d_states: Option<Vec<f64>>,
    /// `[S, B, N, D]`, zeros if absent.
    pub d_last: Option<Vec<f64>>,
}

/// The results of a backward pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// `[B, T, Gx, N, D]`
    pub d_wx: Vec<f64>,
    /// `[Gr, N, D_out, D_in]`
    pub d_r: Vec<f64>,
    /// `[G, N, D]`
    pub d_b: Vec<f64>,
    /// `[S, B, N, D]`
    pub d_s0: Vec<f64>,
}

/// Returns the steps of row `b` in processing order: each time index, and whether the state is
/// zeroed before that step.
fn row_steps(problem: &Problem, shapes: &Shapes, x: &Inputs, b: usize) -> Vec<(usize, bool)> {
    let length = x.lengths.as_ref().map_or(problem.time, |lengths| lengths[b] as usize);
    let step = |t| (t, x.resets.as_ref().is_some_and(|resets| resets[shapes.token(b, t)] != 0));
    if problem.options.reverse {
        (0..length).rev().map(step).collect()
    } else {
        (0..length).map(step).collect()
    }
}

/// Checks the sizes of the inputs and the values of the lengths.
fn check(shapes: &Shapes, x: &Inputs) -> Result<()> {
    Shapes::check("wx", x.wx.len(), &shapes.wx())?;
    Shapes::check("r", x.r.len(), &shapes.r())?;
    Shapes::check("b", x.b.len(), &shapes.b())?;
    if let Some(s0) = &x.s0 {
        Shapes::check("s0", s0.len(), &shapes.state())?;
    }
    if let Some(lengths) = &x.lengths {
        Shapes::check("lengths", lengths.len(), &[shapes.batch])?;
        crate::backend::check_lengths(lengths, shapes.time)?;
    }
    if let Some(resets) = &x.resets {
        Shapes::check("resets", resets.len(), &shapes.resets())?;
    }
    Ok(())
}

/// Runs the forward pass.
///
/// # Errors
/// [`Error::InvalidProblem`](crate::Error::InvalidProblem) if the problem is invalid,
/// [`Error::Shape`](crate::Error::Shape) if a tensor has the wrong size,
/// [`Error::Value`](crate::Error::Value) if a length is outside 0 to T.
pub fn forward<C: Cell>(cell: &C, problem: &Problem, x: &Inputs) -> Result<Outputs> {
    let shapes = problem.shapes::<C>()?;
    check(&shapes, x)?;
    let Shapes { batch, heads, head_dim, states: s, gates: g, recurrent, external, .. } = shapes;
    let units = shapes.units();
    let mut out = Outputs {
        states: vec![0.0; s * shapes.tokens() * units],
        last: x.s0.clone().unwrap_or_else(|| vec![0.0; s * batch * units]),
        gates: vec![0.0; shapes.tokens() * g * units],
        saved_states: vec![0.0; s * shapes.tokens() * units],
    };
    for b in 0..batch {
        for (t, reset) in row_steps(problem, &shapes, x, b) {
            let token = shapes.token(b, t);
            if reset {
                for k in 0..s {
                    out.last[(k * batch + b) * units..][..units].fill(0.0);
                }
            }
            // [N, D]: h_{t-1}
            let h: Vec<f64> =
                out.last[b * units..][..units].iter().map(|&h| x.saturate(h)).collect();
            for n in 0..heads {
                for j in 0..head_dim {
                    let u = n * head_dim + j;
                    let gates = array::<C::Gates<f64>>(|k| {
                        let mut gate = x.b[k * units + u];
                        if k < recurrent {
                            let row =
                                &x.r[((k * heads + n) * head_dim + j) * head_dim..][..head_dim];
                            let h = &h[n * head_dim..][..head_dim];
                            gate += row.iter().zip(h).map(|(r, h)| r * h).sum::<f64>();
                        }
                        if k >= g - external {
                            gate += x.wx[(token * external + k - (g - external)) * units + u];
                        }
                        gate
                    });
                    for (k, &gate) in gates.as_ref().iter().enumerate() {
                        let wide = C::WIDE_GATES.contains(&k);
                        out.gates[(token * g + k) * units + u] =
                            if wide { gate } else { x.saturate(gate) };
                    }
                    let before = array::<C::State<f64>>(|k| out.last[(k * batch + b) * units + u]);
                    let mut after = cell.forward(before, gates);
                    if let Some(v) = problem.options.forward_clip {
                        after.as_mut()[0] = clamp(after.as_ref()[0], v);
                    }
                    for (k, &value) in after.as_ref().iter().enumerate() {
                        out.last[(k * batch + b) * units + u] = value;
                        let at = (k * shapes.tokens() + token) * units + u;
                        out.states[at] = x.saturate(value);
                        out.saved_states[at] =
                            if C::WIDE.contains(&k) { value } else { x.saturate(value) };
                    }
                }
            }
        }
    }
    Ok(out)
}

/// Runs the backward pass of [`forward`], applying the chain rule step by step. `out` must be what
/// [`forward`] returned for `x`.
///
/// # Errors
/// The same as [`forward`].
pub fn backward<C: Cell>(
    cell: &C,
    problem: &Problem,
    x: &Inputs,
    out: &Outputs,
    d: &OutputGradients,
) -> Result<Gradients> {
    let shapes = problem.shapes::<C>()?;
    check(&shapes, x)?;
    check_backward(&shapes, out, d)?;
    let Shapes { batch, states: s, gates: g, external, .. } = shapes;
    let units = shapes.units();
    let mut grads = Gradients {
        d_wx: vec![0.0; x.wx.len()],
        d_r: vec![0.0; x.r.len()],
        d_b: vec![0.0; x.b.len()],
        d_s0: vec![0.0; s * batch * units],
    };
    for b in 0..batch {
        let steps = row_steps(problem, &shapes, x, b);
        // [S, N, D]: the gradient of the state after the current step.
        let mut d_state: Vec<f64> = (0..s * units)
            .map(|i| match &d.d_last {
                Some(d_last) if !shapes.constant.contains(&(i / units)) => {
                    d_last[((i / units) * batch + b) * units + i % units]
                }
                _ => 0.0,
            })
            .collect();
        for (i, &(t, reset)) in steps.iter().enumerate().rev() {
            let token = shapes.token(b, t);
            // [S, N, D]: the state before the current step.
            let state = match i.checked_sub(1) {
                _ if reset => vec![0.0; s * units],
                Some(i) => state_after(&shapes, out, shapes.token(b, steps[i].0)),
                None => initial_state(&shapes, x, b),
            };
            if let Some(d_states) = &d.d_states {
                for (j, d_state) in d_state.iter_mut().enumerate() {
                    *d_state +=
                        d_states[((j / units) * shapes.tokens() + token) * units + j % units];
                }
            }
            let gates = &out.gates[token * g * units..][..g * units];
            let d_gates = cell_backward(cell, problem, &state, gates, &mut d_state);
            for (d_b, d_gate) in grads.d_b.iter_mut().zip(&d_gates) {
                *d_b += d_gate;
            }
            grads.d_wx[token * external * units..][..external * units]
                .copy_from_slice(&d_gates[(g - external) * units..]);
            let h: Vec<f64> = state[..units].iter().map(|&h| x.saturate(h)).collect();
            let d_h = recurrent_backward(&shapes, &x.r, &h, &d_gates, &mut grads.d_r);
            if !problem.options.cut_recurrent_grad {
                for (d_state, d_h) in d_state.iter_mut().zip(d_h) {
                    *d_state += problem.options.recurrent_grad_clip.map_or(d_h, |v| clamp(d_h, v));
                }
            }
            if reset {
                d_state.fill(0.0);
            }
        }
        for (j, &value) in d_state.iter().enumerate() {
            grads.d_s0[((j / units) * batch + b) * units + j % units] = value;
        }
    }
    Ok(grads)
}

/// Checks the sizes of the backward pass's own arguments.
fn check_backward(shapes: &Shapes, out: &Outputs, d: &OutputGradients) -> Result<()> {
    Shapes::check("states", out.states.len(), &shapes.states())?;
    Shapes::check("states", out.saved_states.len(), &shapes.states())?;
    Shapes::check("gates", out.gates.len(), &[shapes.tokens(), shapes.gates, shapes.units()])?;
    if let Some(d_states) = &d.d_states {
        Shapes::check("d_states", d_states.len(), &shapes.states())?;
    }
    if let Some(d_last) = &d.d_last {
        Shapes::check("d_last", d_last.len(), &shapes.state())?;
    }
    Ok(())
}

/// Returns the saved state `[S, N, D]` after the step of `token`.
fn state_after(shapes: &Shapes, out: &Outputs, token: usize) -> Vec<f64> {
    let units = shapes.units();
    let state = |k| &out.saved_states[(k * shapes.tokens() + token) * units..][..units];
    (0..shapes.states).flat_map(state).copied().collect()
}

/// Returns the initial state `[S, N, D]` of row `b`.
fn initial_state(shapes: &Shapes, x: &Inputs, b: usize) -> Vec<f64> {
    let units = shapes.units();
    let Some(s0) = &x.s0 else { return vec![0.0; shapes.states * units] };
    let state = |k| &s0[(k * shapes.batch + b) * units..][..units];
    (0..shapes.states).flat_map(state).copied().collect()
}

/// Propagates gradients through the cell at one step, and returns the gradients of the gates
/// `[G, N, D]`. On entry, `d_state [S, N, D]` holds the gradients of the states after the step; on
/// return, those of the states before the step, without the path through `R`.
fn cell_backward<C: Cell>(
    cell: &C,
    problem: &Problem,
    state: &[f64],
    gates: &[f64],
    d_state: &mut [f64],
) -> Vec<f64> {
    let units = state.len() / C::S;
    let mut d_gates = vec![0.0; gates.len()];
    for u in 0..units {
        let before = array::<C::State<f64>>(|k| state[k * units + u]);
        let gates = array::<C::Gates<f64>>(|k| gates[k * units + u]);
        let mut d_after = array::<C::State<f64>>(|k| d_state[k * units + u]);
        if let Some(v) = problem.options.forward_clip
            && cell.forward(before, gates).as_ref()[0].abs() > v
        {
            d_after.as_mut()[0] = 0.0;
        }
        let (d_before, d_gate) = cell.backward(before, gates, d_after);
        for (k, &d) in d_before.as_ref().iter().enumerate() {
            d_state[k * units + u] = d;
        }
        for (k, &d) in d_gate.as_ref().iter().enumerate() {
            d_gates[k * units + u] = d;
        }
    }
    d_gates
}

/// Propagates the gradients of the gates `[G, N, D]` through `R h` at one step: returns the
/// gradient of `h [N, D]`, and adds the gradient of `r` to `d_r`.
fn recurrent_backward(
    shapes: &Shapes,
    r: &[f64],
    h: &[f64],
    d_gates: &[f64],
    d_r: &mut [f64],
) -> Vec<f64> {
    let &Shapes { heads, head_dim, recurrent, .. } = shapes;
    let units = shapes.units();
    let mut d_h = vec![0.0; units];
    for n in 0..heads {
        for k in 0..recurrent {
            for j in 0..head_dim {
                let d_gate = d_gates[k * units + n * head_dim + j];
                let row = ((k * heads + n) * head_dim + j) * head_dim;
                for i in 0..head_dim {
                    d_h[n * head_dim + i] += r[row + i] * d_gate;
                    d_r[row + i] += d_gate * h[n * head_dim + i];
                }
            }
        }
    }
    d_h
}

/// Makes an array from a function of the index.
fn array<A: Array<f64>>(f: impl Fn(usize) -> f64) -> A {
    let mut a = A::splat(0.0);
    for (k, x) in a.as_mut().iter_mut().enumerate() {
        *x = f(k);
    }
    a
}

/// Clamps `v` to ±`bound`; NaN stays NaN.
fn clamp(v: f64, bound: f64) -> f64 {
    if v > bound {
        bound
    } else if v < -bound {
        -bound
    } else {
        v
    }
}
