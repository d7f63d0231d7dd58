//! Bad input causes the right error, and never a panic.

use flashrnn_core::{
    Backend, Backward, Error, Forward, Lstm, Options, Plan, Problem, Result, Save, SavedMut, Step,
};

use crate::case::{Case, Tensors};
use crate::run::{run, upload};
use crate::suite::{Failures, Suite, same_bits};

/// Every tensor of a wrong size, length out of range, invalid option, and missing or excess tensor
/// causes an error that names it.
pub fn bad_input<B: Backend>(suite: &Suite<B>) -> Failures {
    let mut failures = problems(&suite.backend);
    for save in [Save::Gates, Save::Recompute] {
        match calls(&suite.backend, save) {
            Ok(more) => failures.extend(more),
            Err(error) => failures.push(format!("valid calls failed: {error}")),
        }
    }
    if !suite.backend.checks_lengths() {
        failures.extend(clamped_lengths(&suite.backend));
    }
    failures
}

/// Checks that lengths outside 0 to T are clamped to that range.
fn clamped_lengths<B: Backend>(backend: &B) -> Failures {
    let results = |lengths: [i32; 4]| -> Result<_> {
        let tensors = Tensors { s0: true, lengths: true, resets: true, ..Tensors::PLAIN };
        let mut case = Case::random::<_, f32, f32>(&Lstm, &Problem::new(4, 3, 2, 4), tensors, 1)?;
        case.inputs.lengths = Some(lengths.to_vec());
        run::<_, _, f32, f32>(backend, &Lstm, &case)
    };
    match (results([-1, 4, i32::MIN, i32::MAX]), results([0, 3, 0, 3])) {
        (Ok(got), Ok(want)) => same_bits(&got, &want).err().into_iter().collect(),
        (Err(error), _) | (_, Err(error)) => vec![format!("lengths out of range: {error}")],
    }
}

/// Checks that `plan` rejects invalid problems.
fn problems<B: Backend>(backend: &B) -> Failures {
    let good = Problem::new(2, 3, 2, 4);
    let clip = |v| good.with(Options { forward_clip: Some(v), ..good.options });
    let grad_clip = |v| good.with(Options { recurrent_grad_clip: Some(v), ..good.options });
    let cases = [
        ("heads", Problem { heads: 0, ..good.clone() }),
        ("head_dim", Problem { head_dim: 0, ..good.clone() }),
        ("time", Problem { time: usize::MAX, ..good.clone() }),
        ("sizes", Problem { batch: usize::MAX, ..good.clone() }),
        ("sizes", Problem { head_dim: usize::MAX / 2, ..good.clone() }),
        ("forward_clip", clip(f64::NAN)),
        ("forward_clip", clip(0.0)),
        ("forward_clip", clip(-1.0)),
        ("recurrent_grad_clip", grad_clip(f64::NAN)),
        ("recurrent_grad_clip", grad_clip(0.0)),
        ("recurrent_grad_clip", grad_clip(f64::NEG_INFINITY)),
    ];
    let mut failures = Failures::new();
    for (want, problem) in cases {
        match backend.plan::<f32, f32, Lstm>(&Lstm, &problem).map(|_| ()) {
            Err(Error::InvalidProblem { option, .. }) if option == want => {}
            other => failures
                .push(format!("{problem:?}: got {other:?}, wanted an error for option {want}")),
        }
    }
    failures
}

/// The element counts of the tensors of one call; 0 for tensors that the call does not have.
#[derive(Clone)]
struct Sizes(Vec<(&'static str, usize)>);

impl Sizes {
    fn get(&self, name: &str) -> usize {
        self.0.iter().find(|(n, _)| *n == name).map_or(0, |(_, size)| *size)
    }

    fn with(&self, name: &str, size: usize) -> Self {
        let change = |&(n, old): &(&'static str, usize)| (n, if n == name { size } else { old });
        Self(self.0.iter().map(change).collect())
    }
}

/// A plan for 2 sequences of 3 steps and 2 heads of 4 units, and the failures of its calls.
struct Calls<'a, B: Backend> {
    backend: &'a B,
    plan: B::Plan<f32, f32>,
    save: Save,
    failures: Failures,
}

/// The correct element counts of the tensors.
const WX: usize = 192;
const R: usize = 128;
const BIAS: usize = 32;
const STATE: usize = 32;
const STATES: usize = 96;
const H: usize = 48;

/// The sizes of the inputs that the forward and the backward pass share.
const INPUTS: [(&str, usize); 4] = [("wx", WX), ("s0", STATE), ("lengths", 2), ("resets", 6)];

const LENGTHS_OUT_OF_RANGE: [[i32; 2]; 4] = [[-1, 3], [0, 4], [i32::MIN, 0], [3, i32::MAX]];

/// Checks calls in which one tensor is wrong.
fn calls<B: Backend>(backend: &B, save: Save) -> Result<Failures> {
    let problem = Problem::new(2, 3, 2, 4).with(Options { save, ..Options::default() });
    let plan = backend.plan::<f32, f32, Lstm>(&Lstm, &problem)?;
    let mut calls = Calls { backend, plan, save, failures: Failures::new() };
    calls.pack()?;
    calls.forward()?;
    calls.backward()?;
    calls.step()?;
    Ok(calls.failures)
}

impl<B: Backend> Calls<'_, B> {
    /// Expects an error for `tensor`.
    fn expect(&mut self, what: impl std::fmt::Display, tensor: &str, got: Result<()>) {
        match got {
            Err(
                Error::Shape { tensor: t, .. }
                | Error::Value { tensor: t, .. }
                | Error::Argument { tensor: t, .. },
            ) if t == tensor => {}
            got => self.failures.push(format!(
                "{:?}, {what}: got {got:?}, wanted an error for {tensor}",
                self.save
            )),
        }
    }

    fn pack(&mut self) -> Result<()> {
        let wrong = [("r", R - 1, BIAS), ("r", 0, BIAS), ("b", R, BIAS + 1), ("b", R, 0)];
        for (tensor, r, b) in wrong {
            let (r, b) = (self.backend.alloc::<f32>(r)?, self.backend.alloc::<f32>(b)?);
            let got = self.plan.pack(self.backend.view(&r), self.backend.view(&b)).map(|_| ());
            self.expect(format!("pack with a wrong {tensor}"), tensor, got);
        }
        Ok(())
    }

    fn forward(&mut self) -> Result<()> {
        let outputs = [("h", H), ("states", STATES), ("last", STATE)];
        let good = Sizes(INPUTS.into_iter().chain(outputs).collect());
        let call = |calls: &Self, sizes: &Sizes, lengths: &[i32], saved| {
            forward(calls.backend, &calls.plan, sizes, lengths, saved)
        };
        call(self, &good, &[1, 3], [None, None])?;
        for &(name, size) in &good.0 {
            for wrong in [0, size - 1, size + 1, 2 * size] {
                let got = call(self, &good.with(name, wrong), &[1, 3], [None, None]);
                self.expect(format!("forward with {wrong} elements of {name}"), name, got);
            }
        }
        if self.backend.checks_lengths() {
            for lengths in LENGTHS_OUT_OF_RANGE {
                let got = call(self, &good, &lengths, [None, None]);
                self.expect(format!("forward with lengths {lengths:?}"), "lengths", got);
            }
        }
        let gates = if self.save == Save::Gates { 4 * H } else { 0 };
        let got = call(self, &good, &[1, 3], [Some(gates + 1), None]);
        self.expect("forward with wrong saved gates", "saved.gates", got);
        let got = call(self, &good, &[1, 3], [None, Some(1)]);
        self.expect("forward with wrong saved wide states", "saved.wide", got);
        Ok(())
    }

    fn backward(&mut self) -> Result<()> {
        let gradients = [
            ("d_states", STATES),
            ("d_last", STATE),
            ("d_wx", WX),
            ("d_r", R),
            ("d_b", BIAS),
            ("d_s0", STATE),
        ];
        let states = [("states", STATES)];
        let good = Sizes(INPUTS.into_iter().chain(states).chain(gradients).collect());
        let call = |calls: &Self, sizes: &Sizes, lengths: &[i32], given| {
            backward(calls.backend, &calls.plan, sizes, lengths, given)
        };
        let all = Given { wx: true, d_h: None, d_states: true };
        call(self, &good, &[1, 3], all)?;
        for &(name, size) in &good.0 {
            for wrong in [0, size - 1, size + 1, 2 * size] {
                let got = call(self, &good.with(name, wrong), &[1, 3], all);
                self.expect(format!("backward with {wrong} elements of {name}"), name, got);
            }
        }
        if self.backend.checks_lengths() {
            for lengths in LENGTHS_OUT_OF_RANGE {
                let got = call(self, &good, &lengths, all);
                self.expect(format!("backward with lengths {lengths:?}"), "lengths", got);
            }
        }
        let both = Given { d_h: Some(H), ..all };
        let got = call(self, &good, &[1, 3], both);
        self.expect("backward with d_h and d_states", "d_h", got);
        let wrong = Given { d_h: Some(H - 1), d_states: false, ..all };
        let got = call(self, &good, &[1, 3], wrong);
        self.expect("backward with a wrong d_h", "d_h", got);
        let without_wx = call(self, &good, &[1, 3], Given { wx: false, ..all });
        match self.save {
            Save::Gates => without_wx?,
            Save::Recompute => self.expect("backward without wx", "wx", without_wx),
        }
        Ok(())
    }

    fn step(&mut self) -> Result<()> {
        let backend = self.backend;
        let (r, b) = (backend.alloc::<f32>(R)?, backend.alloc::<f32>(BIAS)?);
        let weights = self.plan.pack(backend.view(&r), backend.view(&b))?;
        let call = |calls: &Self, wx: usize, state: usize, h: usize| {
            let (wx, mut state, mut h) =
                (backend.alloc::<f32>(wx)?, backend.alloc::<f32>(state)?, backend.alloc::<f32>(h)?);
            let (state, h) = (backend.view_mut(&mut state), Some(backend.view_mut(&mut h)));
            calls.plan.step(Step { wx: backend.view(&wx), weights: &weights, state, h })
        };
        call(self, 64, STATE, 16)?;
        for (tensor, wx, state, h) in
            [("wx", 63, STATE, 16), ("state", 64, STATE + 1, 16), ("h", 64, STATE, 0)]
        {
            let got = call(self, wx, state, h);
            self.expect(format!("step with a wrong {tensor}"), tensor, got);
        }
        Ok(())
    }
}

/// Runs a forward pass with tensors of the given sizes. `saved` overrides the sizes of the saved
/// gates and wide states.
fn forward<B: Backend>(
    backend: &B,
    plan: &B::Plan<f32, f32>,
    sizes: &Sizes,
    lengths: &[i32],
    saved: [Option<usize>; 2],
) -> Result<()> {
    let zeros = |name| backend.alloc::<f32>(sizes.get(name));
    let shapes = plan.shapes();
    let r = backend.alloc::<f32>(shapes.r().iter().product())?;
    let b = backend.alloc::<f32>(shapes.b().iter().product())?;
    let weights = plan.pack(backend.view(&r), backend.view(&b))?;
    let (wx, s0, resets) = (zeros("wx")?, zeros("s0")?, backend.alloc::<u8>(sizes.get("resets"))?);
    let lengths = sized_lengths(backend, lengths, sizes.get("lengths"))?;
    let (mut h, mut states, mut last) = (zeros("h")?, zeros("states")?, zeros("last")?);
    let right = shapes.saved::<f32>(plan.problem().options.save);
    let [mut gates, mut wide] = [
        backend.alloc::<f32>(saved[0].unwrap_or(right[0]))?,
        backend.alloc::<f32>(saved[1].unwrap_or(right[1]))?,
    ];
    plan.forward(Forward {
        s0: Some(backend.view(&s0)),
        lengths: Some(backend.view(&lengths)),
        resets: Some(backend.view(&resets)),
        h: Some(backend.view_mut(&mut h)),
        states: Some(backend.view_mut(&mut states)),
        last: Some(backend.view_mut(&mut last)),
        saved: Some(SavedMut {
            gates: backend.view_mut(&mut gates),
            wide: backend.view_mut(&mut wide),
        }),
        ..Forward::new(&weights, backend.view(&wx))
    })
}

/// Selects among the tensors of a backward call that exclude or require each other.
#[derive(Clone, Copy)]
struct Given {
    wx: bool,
    d_h: Option<usize>,
    d_states: bool,
}

/// Runs a backward pass with tensors of the given sizes.
fn backward<B: Backend>(
    backend: &B,
    plan: &B::Plan<f32, f32>,
    sizes: &Sizes,
    lengths: &[i32],
    given: Given,
) -> Result<()> {
    let zeros = |name| backend.alloc::<f32>(sizes.get(name));
    let shapes = plan.shapes();
    let r = backend.alloc::<f32>(shapes.r().iter().product())?;
    let b = backend.alloc::<f32>(shapes.b().iter().product())?;
    let weights = plan.pack(backend.view(&r), backend.view(&b))?;
    let (wx, s0, resets) = (zeros("wx")?, zeros("s0")?, backend.alloc::<u8>(sizes.get("resets"))?);
    let lengths = sized_lengths(backend, lengths, sizes.get("lengths"))?;
    let (states, d_states, d_last) = (zeros("states")?, zeros("d_states")?, zeros("d_last")?);
    let d_h = given.d_h.map(|len| upload::<B, f32>(backend, &vec![0.0; len])).transpose()?;
    let (mut d_wx, mut d_r, mut d_b, mut d_s0) =
        (zeros("d_wx")?, zeros("d_r")?, zeros("d_b")?, zeros("d_s0")?);
    let saved = plan.saved()?;
    plan.backward(Backward {
        wx: given.wx.then(|| backend.view(&wx)),
        s0: Some(backend.view(&s0)),
        lengths: Some(backend.view(&lengths)),
        resets: Some(backend.view(&resets)),
        d_h: d_h.as_ref().map(|d_h| backend.view(d_h)),
        d_states: given.d_states.then(|| backend.view(&d_states)),
        d_last: Some(backend.view(&d_last)),
        d_r: Some(backend.view_mut(&mut d_r)),
        d_b: Some(backend.view_mut(&mut d_b)),
        d_s0: Some(backend.view_mut(&mut d_s0)),
        ..Backward::new(&weights, backend.view(&states), saved.view(), backend.view_mut(&mut d_wx))
    })
}

/// Uploads `lengths`, truncated or zero-padded to `size` elements.
fn sized_lengths<B: Backend>(backend: &B, lengths: &[i32], size: usize) -> Result<B::Buffer<i32>> {
    let mut lengths = lengths.to_vec();
    lengths.resize(size, 0);
    backend.upload(&lengths)
}
