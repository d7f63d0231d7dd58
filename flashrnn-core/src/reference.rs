//! The operator as the obvious loop in f64: what every backend is measured against.
//!
//! One row, one head, one unit at a time, straight from the equations, and slow. It shares no code
//! with any backend but the cell.

use crate::cell::Array;
use crate::{Cell, Problem, Result, Shapes};

/// The inputs of a forward pass. Shapes as in [`Shapes`].
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
    /// The [`Element::MAX`](crate::Element::MAX) of 16-bit elements: stored states, saved gates and
    /// the h that `R` reads saturate there. Nothing else is rounded, and nothing at all where this
    /// is absent.
    pub range: Option<f64>,
}

impl Inputs {
    /// A state or gate as it is stored.
    fn stored(&self, v: f64) -> f64 {
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
    /// `[B, T, G, N, D]`: what the backward pass reads.
    gates: Vec<f64>,
    /// `states` as the backward pass reads them: those that a cell marks as wide do not saturate.
    kept: Vec<f64>,
}

/// The gradients that a backward pass starts from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OutputGradients {
    /// `[S, B, T, N, D]`, zeros if absent.
    pub d_states: Option<Vec<f64>>,
    /// `[S, B, N, D]`, zeros if absent.
    pub d_last: Option<Vec<f64>>,
}

/// The gradients that a backward pass returns.
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

/// The steps of one row in processing order: time indices, and whether the state is zeroed before
/// each.
fn row_steps(problem: &Problem, shapes: &Shapes, x: &Inputs, b: usize) -> Vec<(usize, bool)> {
    let length = x.lengths.as_ref().map_or(problem.time, |lengths| lengths[b] as usize);
    let step = |t| (t, x.resets.as_ref().is_some_and(|resets| resets[shapes.token(b, t)] != 0));
    if problem.options.reverse {
        (0..length).rev().map(step).collect()
    } else {
        (0..length).map(step).collect()
    }
}

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

/// The forward pass.
///
/// # Errors
/// [`Error::InvalidProblem`](crate::Error::InvalidProblem), [`Error::Shape`](crate::Error::Shape)
/// and [`Error::Value`](crate::Error::Value) for input that makes no sense.
pub fn forward<C: Cell>(cell: &C, problem: &Problem, x: &Inputs) -> Result<Outputs> {
    let shapes = problem.shapes::<C>()?;
    check(&shapes, x)?;
    let Shapes { batch, heads, head_dim, states: s, gates: g, recurrent, external, .. } = shapes;
    let units = shapes.units();
    let mut out = Outputs {
        states: vec![0.0; s * shapes.tokens() * units],
        last: x.s0.clone().unwrap_or_else(|| vec![0.0; s * batch * units]),
        gates: vec![0.0; shapes.tokens() * g * units],
        kept: vec![0.0; s * shapes.tokens() * units],
    };
    for b in 0..batch {
        for (t, reset) in row_steps(problem, &shapes, x, b) {
            let token = shapes.token(b, t);
            if reset {
                for k in 0..s {
                    out.last[(k * batch + b) * units..][..units].fill(0.0);
                }
            }
            // h_{t-1}: [N, D]
            let h: Vec<f64> = out.last[b * units..][..units].iter().map(|&h| x.stored(h)).collect();
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
                            if wide { gate } else { x.stored(gate) };
                    }
                    let before = array::<C::State<f64>>(|k| out.last[(k * batch + b) * units + u]);
                    let mut after = cell.forward(before, gates);
                    if let Some(v) = problem.options.forward_clip {
                        after.as_mut()[0] = clamp(after.as_ref()[0], v);
                    }
                    for (k, &value) in after.as_ref().iter().enumerate() {
                        out.last[(k * batch + b) * units + u] = value;
                        let at = (k * shapes.tokens() + token) * units + u;
                        out.states[at] = x.stored(value);
                        out.kept[at] = if C::WIDE.contains(&k) { value } else { x.stored(value) };
                    }
                }
            }
        }
    }
    Ok(out)
}

/// The backward pass of [`forward`], by the chain rule step by step.
///
/// # Errors
/// As [`forward`].
pub fn backward<C: Cell>(
    cell: &C,
    problem: &Problem,
    x: &Inputs,
    out: &Outputs,
    d: &OutputGradients,
) -> Result<Gradients> {
    let shapes = problem.shapes::<C>()?;
    check(&shapes, x)?;
    Shapes::check("states", out.states.len(), &shapes.states())?;
    Shapes::check("states", out.kept.len(), &shapes.states())?;
    Shapes::check("gates", out.gates.len(), &[shapes.tokens(), shapes.gates, shapes.units()])?;
    if let Some(d_states) = &d.d_states {
        Shapes::check("d_states", d_states.len(), &shapes.states())?;
    }
    if let Some(d_last) = &d.d_last {
        Shapes::check("d_last", d_last.len(), &shapes.state())?;
    }
    let Shapes { batch, heads, head_dim, states: s, gates: g, recurrent, external, .. } = shapes;
    let units = shapes.units();
    let mut grads = Gradients {
        d_wx: vec![0.0; x.wx.len()],
        d_r: vec![0.0; x.r.len()],
        d_b: vec![0.0; x.b.len()],
        d_s0: vec![0.0; s * batch * units],
    };
    for b in 0..batch {
        let steps = row_steps(problem, &shapes, x, b);
        // d_state: [S, N, D], the gradient of the state that the current step leaves.
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
            let previous: Vec<f64> = (0..s * units)
                .map(|j| {
                    let (k, u) = (j / units, j % units);
                    match i.checked_sub(1).map(|i| shapes.token(b, steps[i].0)) {
                        _ if reset => 0.0,
                        Some(token) => out.kept[(k * shapes.tokens() + token) * units + u],
                        None => x.s0.as_ref().map_or(0.0, |s0| s0[(k * batch + b) * units + u]),
                    }
                })
                .collect();
            if let Some(d_states) = &d.d_states {
                for (j, d_state) in d_state.iter_mut().enumerate() {
                    *d_state +=
                        d_states[((j / units) * shapes.tokens() + token) * units + j % units];
                }
            }
            // d_gates: [G, N, D]
            let mut d_gates = vec![0.0; g * units];
            for u in 0..units {
                let before = array::<C::State<f64>>(|k| previous[k * units + u]);
                let gates = array::<C::Gates<f64>>(|k| out.gates[(token * g + k) * units + u]);
                let mut d_after = array::<C::State<f64>>(|k| d_state[k * units + u]);
                if let Some(v) = problem.options.forward_clip
                    && cell.forward(before, gates).as_ref()[0].abs() > v
                {
                    d_after.as_mut()[0] = 0.0;
                }
                let (d_before, d_gate) = cell.backward(before, gates, d_after);
                for k in 0..s {
                    d_state[k * units + u] = d_before.as_ref()[k];
                }
                for k in 0..g {
                    d_gates[k * units + u] = d_gate.as_ref()[k];
                    grads.d_b[k * units + u] += d_gate.as_ref()[k];
                }
            }
            let first_external = (g - external) * units;
            grads.d_wx[token * external * units..][..external * units]
                .copy_from_slice(&d_gates[first_external..]);
            for n in 0..heads {
                let mut d_h = vec![0.0; head_dim];
                for k in 0..recurrent {
                    for j in 0..head_dim {
                        let d_gate = d_gates[k * units + n * head_dim + j];
                        let row = ((k * heads + n) * head_dim + j) * head_dim;
                        for i in 0..head_dim {
                            d_h[i] += x.r[row + i] * d_gate;
                            grads.d_r[row + i] += d_gate * x.stored(previous[n * head_dim + i]);
                        }
                    }
                }
                if !problem.options.cut_recurrent_grad {
                    for (i, &d_h) in d_h.iter().enumerate() {
                        let clipped =
                            problem.options.recurrent_grad_clip.map_or(d_h, |v| clamp(d_h, v));
                        d_state[n * head_dim + i] += clipped;
                    }
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

/// An array from a function of the index.
fn array<A: Array<f64>>(f: impl Fn(usize) -> f64) -> A {
    let mut a = A::splat(0.0);
    for (k, x) in a.as_mut().iter_mut().enumerate() {
        *x = f(k);
    }
    a
}

/// `v` clamped to ±`bound`; NaN stays NaN.
fn clamp(v: f64, bound: f64) -> f64 {
    if v > bound {
        bound
    } else if v < -bound {
        -bound
    } else {
        v
    }
}
