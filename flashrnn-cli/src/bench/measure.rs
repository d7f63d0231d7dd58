//! One measurement: buffers are made, calls warm up, then calls are timed.

use std::time::{Duration, Instant};

use anyhow::Result;
use clap::ValueEnum;
use flashrnn::{Backend, Backward, Cell, Element, Forward, Plan, Problem, Step};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

use crate::memory;

/// What is timed.
#[derive(Clone, Copy, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum Pass {
    /// Inference: h at every step and the last state.
    Fwd,
    /// A step of training.
    FwdBwd,
    /// Packing R and b alone.
    Pack,
    /// One time step of inference with the state kept, as in streaming.
    Step,
}

/// Times `call`, and sorts the times.
fn repeat(
    budget: Duration,
    mut call: impl FnMut() -> flashrnn::Result<()>,
) -> Result<Vec<Duration>> {
    for _ in 0..3 {
        call()?;
    }
    let mut times = Vec::new();
    let start = Instant::now();
    while times.len() < 5 || start.elapsed() < budget {
        let before = Instant::now();
        call()?;
        times.push(before.elapsed());
    }
    times.sort_unstable();
    Ok(times)
}

/// Sorted times of whole calls of one pass over `problem` with random data.
pub fn measure<B: Backend, T: Element, C: Cell>(
    backend: &B,
    cell: &C,
    problem: &Problem,
    pass: Pass,
    budget: Duration,
) -> Result<Vec<Duration>> {
    let plan = backend.plan::<T, T, C>(cell, problem)?;
    let shapes = plan.shapes();
    let size = |shape: &[usize]| shape.iter().product::<usize>();
    let bytes = |shape: &[usize]| size_of::<T>() as u128 * size(shape) as u128;
    memory::check(bytes(&shapes.wx()) + bytes(&shapes.h()), "this problem")?;
    let mut random = StdRng::seed_from_u64(0);
    // Uniform with variance `deviation`².
    let mut upload = |shape: &[usize], deviation: f64| {
        let bound = 3f64.sqrt() * deviation;
        let values = (0..size(shape)).map(|_| T::from_f64(random.random_range(-bound..bound)));
        backend.upload(&values.collect::<Vec<T>>())
    };
    let wx = upload(&shapes.wx(), 1.0)?;
    let r = upload(&shapes.r(), 1.0 / (shapes.head_dim as f64).sqrt())?;
    let b = upload(&shapes.b(), 1.0)?;
    let mut last = backend.alloc::<T::Wide>(size(&shapes.state()))?;

    if pass == Pass::Fwd {
        let mut h = backend.alloc::<T>(size(&shapes.h()))?;
        let weights = plan.pack(backend.view(&r), backend.view(&b))?;
        return repeat(budget, || {
            plan.forward(Forward {
                h: Some(backend.view_mut(&mut h)),
                last: Some(backend.view_mut(&mut last)),
                ..Forward::new(&weights, backend.view(&wx))
            })?;
            backend.synchronize()
        });
    }

    if pass == Pass::Pack {
        return repeat(budget, || {
            plan.pack(backend.view(&r), backend.view(&b))?;
            backend.synchronize()
        });
    }
    if pass == Pass::Step {
        let rows = shapes.batch * shapes.units();
        let wx = upload(&[rows, shapes.external], 1.0)?;
        let mut h = backend.alloc::<T>(rows)?;
        let weights = plan.pack(backend.view(&r), backend.view(&b))?;
        return repeat(budget, || {
            plan.step(Step {
                weights: &weights,
                wx: backend.view(&wx),
                state: backend.view_mut(&mut last),
                h: Some(backend.view_mut(&mut h)),
            })?;
            backend.synchronize()
        });
    }

    let d_h = upload(&shapes.h(), 1.0)?;
    let mut states = backend.alloc::<T>(size(&shapes.states()))?;
    let mut saved = plan.saved()?;
    let mut d_wx = backend.alloc::<T>(size(&shapes.wx()))?;
    let mut d_r = backend.alloc::<T>(size(&shapes.r()))?;
    let mut d_b = backend.alloc::<T>(size(&shapes.b()))?;
    let mut d_s0 = backend.alloc::<T::Wide>(size(&shapes.state()))?;
    repeat(budget, || {
        let weights = plan.pack(backend.view(&r), backend.view(&b))?;
        plan.forward(Forward {
            states: Some(backend.view_mut(&mut states)),
            last: Some(backend.view_mut(&mut last)),
            saved: Some(saved.view_mut()),
            ..Forward::new(&weights, backend.view(&wx))
        })?;
        plan.backward(Backward {
            d_h: Some(backend.view(&d_h)),
            d_r: Some(backend.view_mut(&mut d_r)),
            d_b: Some(backend.view_mut(&mut d_b)),
            d_s0: Some(backend.view_mut(&mut d_s0)),
            ..Backward::new(
                &weights,
                backend.view(&states),
                saved.view(),
                backend.view_mut(&mut d_wx),
            )
        })?;
        backend.synchronize()
    })
}
