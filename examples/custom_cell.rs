//! Defines a cell by its `forward` function alone, and trains it on a toy task.
//!
//! The cell is the minimal gated unit (Zhou et al. 2016), with one gate f for both forgetting and
//! resetting:
//!
//! ```text
//! f = σ(g_f)    n = tanh(n_x + f n_h)    h' = (1 - f) h + f n
//! ```
//!
//! The task is to sum a sequence of noise, which requires a memory that does not decay. The
//! operator computes the gradients of the weights and inputs; the read-out is the mean of h over
//! the units.
//!
//! Run it with `cargo run --release --example custom_cell`.

use flashrnn::{Backend, Backward, Cell, Cpu, Forward, Gate, Plan, Problem, Real, Result};

#[derive(Clone)]
struct MinimalGated;

impl Cell for MinimalGated {
    const NAME: &'static str = "minimal_gated";
    const STATES: &'static [&'static str] = &["h"];
    // n_h takes only recurrent input, n_x only external input, and f both. Hence Gr = Gx = 2.
    const GATES: &'static [Gate] =
        &[Gate::recurrent("n_h"), Gate::both("f"), Gate::external("n_x")];
    type State<R: Real> = [R; 1];
    type Gates<R: Real> = [R; 3];

    #[inline(always)]
    fn forward<R: Real>(&self, [h]: [R; 1], [n_h, g_f, n_x]: [R; 3]) -> [R; 1] {
        let f = g_f.sigmoid();
        let n = (n_x + f * n_h).tanh();
        [(R::lit(1.0) - f) * h + f * n]
    }
}

const BATCH: usize = 64;
const TIME: usize = 20;
const HEADS: usize = 2;
const HEAD_DIM: usize = 16;
const UNITS: usize = HEADS * HEAD_DIM;

/// Returns a uniform number in [-1, 1), from a linear congruential generator.
fn uniform(state: &mut u64) -> f32 {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    (*state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

fn main() -> Result<()> {
    let backend = Cpu::new();
    let plan = backend.plan(&MinimalGated, &Problem::new(BATCH, TIME, HEADS, HEAD_DIM))?;
    let mut seed = 1;

    // w: [2, N, D], from one input to the gates f and n_x. r: [2, N, D, D]. b: [3, N, D].
    let mut w: Vec<f32> = (0..2 * UNITS).map(|_| uniform(&mut seed)).collect();
    let mut r: Vec<f32> = (0..2 * UNITS * HEAD_DIM).map(|_| 0.3 * uniform(&mut seed)).collect();
    let mut b = vec![0.0f32; 3 * UNITS];
    let mut saved = plan.saved()?;
    // states: [1, B, T, N, D], d_wx: [B, T, 2, N, D]
    let mut states = vec![0.0f32; BATCH * TIME * UNITS];
    let mut d_wx = vec![0.0f32; BATCH * TIME * 2 * UNITS];
    let (mut d_r, mut d_b) = (vec![0.0f32; r.len()], vec![0.0f32; b.len()]);

    for step in 0..=500 {
        // x: [B, T] of noise, wx: [B, T, 2, N, D]
        let x: Vec<f32> = (0..BATCH * TIME).map(|_| uniform(&mut seed)).collect();
        let wx: Vec<f32> = x.iter().flat_map(|x| w.iter().map(move |w| x * w)).collect();

        // The forward pass. last: [1, B, N, D]
        let weights = plan.pack(&r, &b)?;
        let mut last = vec![0.0f32; BATCH * UNITS];
        plan.forward(Forward {
            states: Some(&mut states),
            last: Some(&mut last),
            saved: Some(saved.view_mut()),
            ..Forward::new(&weights, &wx)
        })?;

        // The loss is the squared error of the read-out relative to that of always reading out 0.
        let targets: Vec<f32> = x.chunks(TIME).map(|row| 0.1 * row.iter().sum::<f32>()).collect();
        let size: f32 = targets.iter().map(|target| target * target).sum();
        let mut loss = 0.0;
        let mut d_last = vec![0.0f32; last.len()];
        for ((h, d_h), target) in last.chunks(UNITS).zip(d_last.chunks_mut(UNITS)).zip(&targets) {
            let error = h.iter().sum::<f32>() / UNITS as f32 - target;
            loss += error * error / size;
            d_h.fill(2.0 * error / (UNITS as f32 * size));
        }
        if step % 100 == 0 {
            println!("step {step:3}: {:5.1} % of the variance unexplained", 100.0 * loss);
        }

        // The backward pass and a step of gradient descent.
        plan.backward(Backward {
            d_last: Some(&d_last),
            d_r: Some(&mut d_r),
            d_b: Some(&mut d_b),
            ..Backward::new(&weights, &states, saved.view(), &mut d_wx)
        })?;
        let mut d_w = vec![0.0f32; w.len()];
        for (x, d_wx) in x.iter().zip(d_wx.chunks(w.len())) {
            for (d_w, d_wx) in d_w.iter_mut().zip(d_wx) {
                *d_w += x * d_wx;
            }
        }
        for (values, gradients) in [(&mut w, &d_w), (&mut r, &d_r), (&mut b, &d_b)] {
            for (v, d) in values.iter_mut().zip(gradients) {
                *v -= 0.15 * d;
            }
        }
    }
    Ok(())
}
