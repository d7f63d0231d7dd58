//! A single measurement: allocates buffers, warms up, then times calls.

use std::time::{Duration, Instant};

use anyhow::Result;
use clap::ValueEnum;
use flashrnn::{Backend, Backward, Cell, Element, Forward, Plan, Problem, Step, Weights};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

use crate::memory;

/// The operation to time.
#[derive(Clone, Copy, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum Pass {
    /// Inference that returns h at every step and the final state.
    Fwd,
    /// A training step.
    FwdBwd,
    /// Packing R and b.
    Pack,
    /// One time step of streaming inference.
    Step,
}

/// Times `call` repeatedly, and returns the sorted times.
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

/// Times one pass over `problem` with random data. Returns the sorted times of whole calls.
pub fn measure<B: Backend, T: Element, C: Cell>(
    backend: &B,
    cell: &C,
    problem: &Problem,
    pass: Pass,
    budget: Duration,
) -> Result<Vec<Duration>> {
    let plan = backend.plan::<T, T, C>(cell, problem)?;
    let shapes = plan.shapes();
    let bytes = |shape: &[usize]| size_of::<T>() as u128 * size(shape) as u128;
    memory::check(bytes(&shapes.wx()) + bytes(&shapes.h()), "this problem")?;
    let mut bench = Bench::<B, T>::new(backend, plan, budget)?;
    match pass {
        Pass::Fwd => bench.inference(),
        Pass::FwdBwd => bench.training(),
        Pass::Pack => bench.packing(),
        Pass::Step => bench.step(),
    }
}

/// A plan with its inputs.
struct Bench<'a, B: Backend, T: Element> {
    backend: &'a B,
    plan: B::Plan<T, T>,
    budget: Duration,
    random: StdRng,
    wx: B::Buffer<T>,
    r: B::Buffer<T>,
    b: B::Buffer<T>,
}

impl<'a, B: Backend, T: Element> Bench<'a, B, T> {
    fn new(backend: &'a B, plan: B::Plan<T, T>, budget: Duration) -> Result<Self> {
        let mut random = StdRng::seed_from_u64(0);
        let shapes = plan.shapes();
        let wx = upload(backend, &mut random, &shapes.wx(), 1.0)?;
        let r = upload(backend, &mut random, &shapes.r(), 1.0 / (shapes.head_dim as f64).sqrt())?;
        let b = upload(backend, &mut random, &shapes.b(), 1.0)?;
        Ok(Self { backend, plan, budget, random, wx, r, b })
    }

    fn pack(&self) -> flashrnn::Result<Weights<B, T>> {
        self.plan.pack(self.backend.view(&self.r), self.backend.view(&self.b))
    }

    fn inference(&self) -> Result<Vec<Duration>> {
        let (backend, shapes) = (self.backend, self.plan.shapes());
        let mut last = backend.alloc::<T::Wide>(size(&shapes.state()))?;
        let mut h = backend.alloc::<T>(size(&shapes.h()))?;
        let weights = self.pack()?;
        repeat(self.budget, || {
            self.plan.forward(Forward {
                h: Some(backend.view_mut(&mut h)),
                last: Some(backend.view_mut(&mut last)),
                ..Forward::new(&weights, backend.view(&self.wx))
            })?;
            backend.synchronize()
        })
    }

    fn packing(&self) -> Result<Vec<Duration>> {
        repeat(self.budget, || {
            self.pack()?;
            self.backend.synchronize()
        })
    }

    fn step(&mut self) -> Result<Vec<Duration>> {
        let (backend, shapes) = (self.backend, self.plan.shapes());
        let rows = shapes.batch * shapes.units();
        let wx = upload::<_, T>(backend, &mut self.random, &[rows, shapes.external], 1.0)?;
        let mut state = backend.alloc::<T::Wide>(size(&shapes.state()))?;
        let mut h = backend.alloc::<T>(rows)?;
        let weights = self.pack()?;
        repeat(self.budget, || {
            self.plan.step(Step {
                weights: &weights,
                wx: backend.view(&wx),
                state: backend.view_mut(&mut state),
                h: Some(backend.view_mut(&mut h)),
            })?;
            backend.synchronize()
        })
    }

    fn training(&mut self) -> Result<Vec<Duration>> {
        let (backend, shapes) = (self.backend, self.plan.shapes());
        let d_h = upload::<_, T>(backend, &mut self.random, &shapes.h(), 1.0)?;
        let mut states = backend.alloc::<T>(size(&shapes.states()))?;
        let mut last = backend.alloc::<T::Wide>(size(&shapes.state()))?;
        let mut saved = self.plan.saved()?;
        let mut d_wx = backend.alloc::<T>(size(&shapes.wx()))?;
        let mut d_r = backend.alloc::<T>(size(&shapes.r()))?;
        let mut d_b = backend.alloc::<T>(size(&shapes.b()))?;
        let mut d_s0 = backend.alloc::<T::Wide>(size(&shapes.state()))?;
        repeat(self.budget, || {
            let weights = self.pack()?;
            self.plan.forward(Forward {
                states: Some(backend.view_mut(&mut states)),
                last: Some(backend.view_mut(&mut last)),
                saved: Some(saved.view_mut()),
                ..Forward::new(&weights, backend.view(&self.wx))
            })?;
            self.plan.backward(Backward {
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
}

fn size(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// Uploads uniformly distributed random numbers with the given standard deviation.
fn upload<B: Backend, T: Element>(
    backend: &B,
    random: &mut StdRng,
    shape: &[usize],
    deviation: f64,
) -> flashrnn::Result<B::Buffer<T>> {
    let bound = 3f64.sqrt() * deviation;
    let values = (0..size(shape)).map(|_| T::from_f64(random.random_range(-bound..bound)));
    backend.upload(&values.collect::<Vec<T>>())
}

/// Converts to milliseconds, rounded to ten nanoseconds.
pub fn milliseconds(time: Duration) -> f64 {
    round(1e3 * time.as_secs_f64())
}

/// Rounds milliseconds to ten nanoseconds.
pub fn round(milliseconds: f64) -> f64 {
    (1e5 * milliseconds).round() / 1e5
}
