//! Problems with their tensors, and the results of both passes and a step.

#![allow(dead_code, reason = "no test uses all of it")]

use flashrnn_core::{Backend, Backward, Cell, Element, Forward, Plan, Problem, Step, Weights};
use flashrnn_cpu::{Cpu, CpuPlan};

/// The results of both passes and a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Results<T: Element> {
    pub states: Vec<T>,
    pub last: Vec<T::Wide>,
    pub d_wx: Vec<T>,
    pub d_r: Vec<T>,
    pub d_b: Vec<T>,
    pub d_s0: Vec<T::Wide>,
    pub stepped: Vec<T::Wide>,
}

/// Returns pseudo-random numbers from -`scale` to `scale`.
pub fn ramp<T: Element>(len: usize, scale: f64) -> Vec<T> {
    (0..len).map(|i| T::from_f64(scale * ((i * 7919 % 2003) as f64 / 1001.5 - 1.0))).collect()
}

/// Returns the number of elements of a tensor.
pub fn len(dims: &[usize]) -> usize {
    dims.iter().product()
}

/// Makes a plan whose weights have the tensors' type.
pub fn plan<T: Element, C: Cell>(cpu: &Cpu, cell: &C, problem: &Problem) -> CpuPlan<T, T> {
    cpu.plan::<T, T, C>(cell, problem).expect("a valid problem")
}

/// Packs pseudo-random weights.
pub fn pack<T: Element>(plan: &CpuPlan<T, T>) -> Weights<Cpu, T> {
    let shapes = plan.shapes();
    let r = ramp::<T>(len(&shapes.r()), 1.0 / (shapes.head_dim as f64).sqrt());
    plan.pack(&r, &ramp::<T>(len(&shapes.b()), 0.5)).expect("valid sizes")
}

/// Workspaces filled with bytes that are NaN in every element type.
pub struct Workspaces {
    memory: Vec<u8>,
    lens: [usize; 2],
}

impl Workspaces {
    pub fn new<T: Element>(plan: &CpuPlan<T, T>) -> Self {
        let lens = [plan.forward_workspace().bytes, plan.backward_workspace().bytes];
        Self { memory: vec![0xff; 64 + lens[0].max(lens[1])], lens }
    }

    /// Returns the workspace of the forward pass (0) or the backward pass (1), at an odd address.
    pub fn get(&mut self, pass: usize) -> &mut [u8] {
        let odd = usize::from(self.memory.as_ptr().addr().is_multiple_of(2));
        &mut self.memory[odd..][..self.lens[pass]]
    }
}

/// Allocates memory for the results.
pub fn results<T: Element>(plan: &CpuPlan<T, T>) -> Results<T> {
    let shapes = plan.shapes();
    Results {
        states: ramp(len(&shapes.states()), 1.0),
        last: ramp(len(&shapes.state()), 1.0),
        d_wx: ramp(len(&shapes.wx()), 1.0),
        d_r: ramp(len(&shapes.r()), 1.0),
        d_b: ramp(len(&shapes.b()), 1.0),
        d_s0: ramp(len(&shapes.state()), 1.0),
        stepped: ramp(len(&shapes.state()), 0.0),
    }
}

/// Runs both passes, in `workspaces` if given, and a step.
pub fn run<T: Element>(
    plan: &CpuPlan<T, T>,
    weights: &Weights<Cpu, T>,
    lengths: Option<&[i32]>,
    workspaces: Option<&mut Workspaces>,
) -> Results<T> {
    let shapes = plan.shapes();
    let (wx, d_h) = (ramp::<T>(len(&shapes.wx()), 1.0), ramp::<T>(len(&shapes.h()), 1.0));
    let (mut out, mut saved) = (results(plan), plan.saved().expect("memory"));
    let mut workspaces = workspaces;
    plan.forward(Forward {
        lengths,
        states: Some(&mut out.states[..]),
        last: Some(&mut out.last[..]),
        saved: Some(saved.view_mut()),
        workspace: workspaces.as_mut().map(|w| w.get(0)),
        ..Forward::new(weights, &wx[..])
    })
    .expect("valid sizes");
    plan.backward(Backward {
        wx: Some(&wx[..]),
        lengths,
        d_h: Some(&d_h[..]),
        d_r: Some(&mut out.d_r[..]),
        d_b: Some(&mut out.d_b[..]),
        d_s0: Some(&mut out.d_s0[..]),
        workspace: workspaces.as_mut().map(|w| w.get(1)),
        ..Backward::new(weights, &out.states[..], saved.view(), &mut out.d_wx[..])
    })
    .expect("valid sizes");
    let wx = &wx[..shapes.batch * shapes.external * shapes.units()];
    plan.step(Step { weights, wx, state: &mut out.stepped[..], h: None }).expect("valid sizes");
    out
}
