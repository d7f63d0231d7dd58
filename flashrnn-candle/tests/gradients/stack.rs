//! A module of layers and directions made of the f64 reference.

use flashrnn::reference::{self, Gradients, Inputs, OutputGradients, Outputs};
use flashrnn::{Cell, CellSizes, Options, Problem, Shapes};
use flashrnn_candle::RnnConfig;

/// A module and its input. All tensors are lists of their elements.
pub struct Module<C> {
    pub cell: C,
    pub config: RnnConfig,
    /// B, T, N, D, without options
    pub problem: Problem,
    /// `[B, T, I]`
    pub x: Vec<f64>,
    /// One per layer and direction
    pub weights: Vec<Weights>,
    /// One `[S, B, N, D]` per layer and direction
    pub s0: Option<Vec<Vec<f64>>>,
    pub lengths: Option<Vec<i32>>,
    pub resets: Option<Vec<u8>>,
}

pub struct Weights {
    /// `[Gx·N·D, I]`
    pub w: Vec<f64>,
    pub r: Vec<f64>,
    pub b: Vec<f64>,
}

/// What one layer and direction read and computed.
struct Call {
    problem: Problem,
    inputs: Inputs,
    /// `[B, T, I]`
    x: Vec<f64>,
    out: Outputs,
}

pub struct Results {
    /// `[B, T, directions·N·D]`
    pub h: Vec<f64>,
    /// One `[S, B, N, D]` per layer and direction
    pub last: Vec<Vec<f64>>,
    calls: Vec<Call>,
}

/// The gradients of one layer and direction.
pub struct LayerGradients {
    pub d_w: Vec<f64>,
    pub d_r: Vec<f64>,
    pub d_b: Vec<f64>,
    pub d_s0: Vec<f64>,
}

impl<C: Cell> Module<C> {
    fn directions(&self) -> usize {
        if self.config.bidirectional { 2 } else { 1 }
    }

    fn units(&self) -> usize {
        self.problem.heads * self.problem.head_dim
    }

    fn tokens(&self) -> usize {
        self.problem.batch * self.problem.time
    }

    pub fn forward(&self) -> flashrnn::Result<Results> {
        let (directions, units) = (self.directions(), self.units());
        let mut results = Results { h: self.x.clone(), last: vec![], calls: vec![] };
        for index in 0..self.weights.len() {
            // The layer's input is the last one's output until all directions have read it.
            let x = results.h.clone();
            results.calls.push(self.direction(index, x)?);
            let calls = &results.calls;
            results.last.push(calls[index].out.last.clone());
            if index % directions == directions - 1 {
                let of = |d: usize| &calls[index + 1 - directions + d].out.states;
                results.h = (0..self.tokens())
                    .flat_map(|k| (0..directions).map(move |d| (k, d)))
                    .flat_map(|(k, d)| of(d)[k * units..(k + 1) * units].to_vec())
                    .collect();
            }
        }
        Ok(results)
    }

    /// Runs one layer and direction.
    fn direction(&self, index: usize, x: Vec<f64>) -> flashrnn::Result<Call> {
        let backward = index % self.directions() == 1;
        let base = self.config.options;
        let options = Options { reverse: base.reverse || backward, ..base };
        let problem = self.problem.with(options);
        let shapes = problem.shapes::<C>()?;
        let Weights { w, r, b } = &self.weights[index];
        let resets = self.resets.as_ref().map(|resets| {
            if backward { self.backward_resets(&shapes, resets) } else { resets.clone() }
        });
        let inputs = Inputs {
            wx: product(&x, w, C::GX * self.units()),
            r: r.clone(),
            b: b.clone(),
            s0: self.s0.as_ref().map(|s0| s0[index].clone()),
            lengths: self.lengths.clone(),
            resets,
            ..Inputs::default()
        };
        let out = reference::forward(&self.cell, &problem, &inputs)?;
        Ok(Call { problem, inputs, x, out })
    }

    /// Flags the last step of every document that is followed by another in its row.
    fn backward_resets(&self, shapes: &Shapes, resets: &[u8]) -> Vec<u8> {
        let mut moved = vec![0; resets.len()];
        for b in 0..self.problem.batch {
            let length = self.lengths.as_ref().map_or(self.problem.time, |n| n[b] as usize);
            for t in 1..length {
                moved[shapes.token(b, t - 1)] = resets[shapes.token(b, t)];
            }
        }
        moved
    }

    /// Returns d_x `[B, T, I]` and the gradients of every layer and direction.
    pub fn backward(
        &self,
        results: &Results,
        d_h: Vec<f64>,
        d_last: &[Vec<f64>],
    ) -> flashrnn::Result<(Vec<f64>, Vec<LayerGradients>)> {
        let (directions, units) = (self.directions(), self.units());
        let mut d_h = d_h; // of the layer's output
        let mut all: Vec<LayerGradients> = vec![];
        for layer in (0..self.config.layers).rev() {
            let mut d_x = vec![0.0; results.calls[layer * directions].x.len()];
            for direction in (0..directions).rev() {
                let index = layer * directions + direction;
                let Call { problem, inputs, x, out } = &results.calls[index];
                let part =
                    |token: &[f64]| token[direction * units..(direction + 1) * units].to_vec();
                let mut d_states: Vec<f64> =
                    d_h.chunks(directions * units).flat_map(part).collect();
                d_states.resize(out.states.len(), 0.0); // h comes first among the states
                let d = OutputGradients {
                    d_states: Some(d_states),
                    d_last: Some(d_last[index].clone()),
                };
                let Gradients { d_wx, d_r, d_b, d_s0 } =
                    reference::backward(&self.cell, problem, inputs, out, &d)?;
                let rows = C::GX * units;
                add_product(&mut d_x, &d_wx, &self.weights[index].w, rows);
                all.push(LayerGradients { d_w: outer(&d_wx, x, rows), d_r, d_b, d_s0 });
            }
            d_h = d_x;
        }
        all.reverse();
        Ok((d_h, all))
    }
}

/// Multiplies every row of `x [tokens, I]` by `w [rows, I]`.
fn product(x: &[f64], w: &[f64], rows: usize) -> Vec<f64> {
    let input = w.len() / rows;
    let dot = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
    x.chunks(input).flat_map(|x| w.chunks(input).map(move |w| dot(x, w))).collect()
}

/// Adds `d_wx [tokens, rows]` times `w [rows, I]` to `d_x [tokens, I]`.
fn add_product(d_x: &mut [f64], d_wx: &[f64], w: &[f64], rows: usize) {
    let input = w.len() / rows;
    for (d_x, d_wx) in d_x.chunks_mut(input).zip(d_wx.chunks(rows)) {
        for (w, d) in w.chunks(input).zip(d_wx) {
            d_x.iter_mut().zip(w).for_each(|(d_x, w)| *d_x += d * w);
        }
    }
}

/// Returns the transpose of `d_wx [tokens, rows]` times `x [tokens, I]`.
fn outer(d_wx: &[f64], x: &[f64], rows: usize) -> Vec<f64> {
    let input = x.len() * rows / d_wx.len();
    let mut d_w = vec![0.0; rows * input];
    for (d_wx, x) in d_wx.chunks(rows).zip(x.chunks(input)) {
        for (d_w, d) in d_w.chunks_mut(input).zip(d_wx) {
            d_w.iter_mut().zip(x).for_each(|(d_w, x)| *d_w += d * x);
        }
    }
    d_w
}
