//! Bad input gives the right error, and never a panic.

use flashrnn_core::{
    Backend, Backward, Error, Forward, Lstm, Options, Plan, Problem, Result, Save, SavedMut, Step,
};

use crate::case::{Case, Tensors};
use crate::run::{run, upload};
use crate::suite::{Failures, Suite, same_bits};

/// Wrong sizes of every tensor, lengths out of range, options that make no sense, missing and
/// excess tensors: each gives the error that names it.
pub fn bad_input<B: Backend>(suite: &Suite<B>) -> Failures {
    let mut failures = problems(&suite.backend);
    for save in [Save::Gates, Save::Recompute] {
        match calls(&suite.backend, save) {
            Ok(more) => failures.extend(more),
            Err(error) => failures.push(format!("good calls failed: {error}")),
        }
    }
    if !suite.backend.checks_lengths() {
        failures.extend(clamped_lengths(&suite.backend));
    }
    failures
}

/// Lengths outside 0 to T count as 0 and T.
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

/// Problems that `plan` must refuse.
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

/// What one call gives: the element counts of its tensors, 0 for none.
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

/// Calls with one tensor wrong each.
fn calls<B: Backend>(backend: &B, save: Save) -> Result<Failures> {
    let problem = Problem::new(2, 3, 2, 4).with(Options { save, ..Options::default() });
    let plan = backend.plan::<f32, f32, Lstm>(&Lstm, &problem)?;
    let (wx, r, b, state, states, h) = (192, 128, 32, 32, 96, 48);
    let mut failures = Failures::new();
    let mut expect = |what: String, tensor: &str, got: Result<()>| match got {
        Err(
            Error::Shape { tensor: t, .. }
            | Error::Value { tensor: t, .. }
            | Error::Argument { tensor: t, .. },
        ) if t == tensor => {}
        got => {
            failures.push(format!("{save:?}, {what}: got {got:?}, wanted an error for {tensor}"))
        }
    };

    for (tensor, r, b) in [("r", r - 1, b), ("r", 0, b), ("b", r, b + 1), ("b", r, 0)] {
        let (r, b) = (backend.alloc::<f32>(r)?, backend.alloc::<f32>(b)?);
        expect(
            format!("pack with a wrong {tensor}"),
            tensor,
            plan.pack(backend.view(&r), backend.view(&b)).map(|_| ()),
        );
    }

    let inputs = [("wx", wx), ("s0", state), ("lengths", 2), ("resets", 6)];
    let outputs = [("h", h), ("states", states), ("last", state)];
    let good = Sizes(inputs.into_iter().chain(outputs).collect());
    forward(backend, &plan, &good, &[1, 3], [None, None])?;
    for &(name, size) in &good.0 {
        for wrong in [0, size - 1, size + 1, 2 * size] {
            let got = forward(backend, &plan, &good.with(name, wrong), &[1, 3], [None, None]);
            expect(format!("forward with {wrong} elements of {name}"), name, got);
        }
    }
    let out_of_range = [[-1, 3], [0, 4], [i32::MIN, 0], [3, i32::MAX]];
    for lengths in out_of_range.into_iter().filter(|_| backend.checks_lengths()) {
        expect(
            format!("forward with lengths {lengths:?}"),
            "lengths",
            forward(backend, &plan, &good, &lengths, [None, None]),
        );
    }
    let gates = if save == Save::Gates { 4 * h } else { 0 };
    expect(
        "forward with wrong saved gates".into(),
        "saved.gates",
        forward(backend, &plan, &good, &[1, 3], [Some(gates + 1), None]),
    );
    expect(
        "forward with wrong saved wide states".into(),
        "saved.wide",
        forward(backend, &plan, &good, &[1, 3], [None, Some(1)]),
    );

    let gradients = [
        ("d_states", states),
        ("d_last", state),
        ("d_wx", wx),
        ("d_r", r),
        ("d_b", b),
        ("d_s0", state),
    ];
    let good = Sizes(inputs.into_iter().chain([("states", states)]).chain(gradients).collect());
    let all = Given { wx: true, d_h: None, d_states: true };
    backward(backend, &plan, &good, &[1, 3], all)?;
    for &(name, size) in &good.0 {
        for wrong in [0, size - 1, size + 1, 2 * size] {
            let got = backward(backend, &plan, &good.with(name, wrong), &[1, 3], all);
            expect(format!("backward with {wrong} elements of {name}"), name, got);
        }
    }
    for lengths in out_of_range.into_iter().filter(|_| backend.checks_lengths()) {
        expect(
            format!("backward with lengths {lengths:?}"),
            "lengths",
            backward(backend, &plan, &good, &lengths, all),
        );
    }
    let both = Given { d_h: Some(h), ..all };
    expect(
        "backward with d_h and d_states".into(),
        "d_h",
        backward(backend, &plan, &good, &[1, 3], both),
    );
    let wrong = Given { d_h: Some(h - 1), d_states: false, ..all };
    expect(
        "backward with a wrong d_h".into(),
        "d_h",
        backward(backend, &plan, &good, &[1, 3], wrong),
    );
    let without_wx = backward(backend, &plan, &good, &[1, 3], Given { wx: false, ..all });
    match save {
        Save::Gates => without_wx?,
        Save::Recompute => expect("backward without wx".into(), "wx", without_wx),
    }

    let (r, b) = (backend.alloc::<f32>(r)?, backend.alloc::<f32>(b)?);
    let weights = plan.pack(backend.view(&r), backend.view(&b))?;
    let step = |wx: usize, state: usize, h: usize| {
        let (wx, mut state, mut h) =
            (backend.alloc::<f32>(wx)?, backend.alloc::<f32>(state)?, backend.alloc::<f32>(h)?);
        let (state, h) = (backend.view_mut(&mut state), Some(backend.view_mut(&mut h)));
        plan.step(Step { wx: backend.view(&wx), weights: &weights, state, h })
    };
    step(64, 32, 16)?;
    expect("step with a wrong wx".into(), "wx", step(63, 32, 16));
    expect("step with a wrong state".into(), "state", step(64, 33, 16));
    expect("step with a wrong h".into(), "h", step(64, 32, 0));
    Ok(failures)
}

/// A forward pass with tensors of these sizes, and saved buffers of these sizes instead of the
/// right ones.
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

/// Which of the tensors that exclude or need each other a backward call gives.
#[derive(Clone, Copy)]
struct Given {
    wx: bool,
    d_h: Option<usize>,
    d_states: bool,
}

/// A backward pass with tensors of these sizes.
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

/// `lengths`, cut or filled up with zeros to `size` elements.
fn sized_lengths<B: Backend>(backend: &B, lengths: &[i32], size: usize) -> Result<B::Buffer<i32>> {
    let mut lengths = lengths.to_vec();
    lengths.resize(size, 0);
    backend.upload(&lengths)
}
