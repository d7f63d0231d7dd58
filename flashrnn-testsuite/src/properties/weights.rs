//! Which plans share packed weights, and which must reject them.

use flashrnn_core::{
    Backend, Backward, Cell, Elman, Error, Forward, Gru, Layout, Lstm, Options, Plan, Problem,
    Result, Save, Step, Weights,
};

use crate::cells::Leaky;
use crate::random::Random;
use crate::suite::{Failures, Suite};

/// Weights packed by another plan yield the right results if the layouts are equal (the batch,
/// time, options, constants of the cell and number of threads may differ). Otherwise every call
/// rejects them with [`Error::Argument`], so that no kernel reads them with the wrong sizes.
pub fn foreign_weights<B: Backend>(suite: &Suite<B>) -> Failures {
    let backend = &suite.backend;
    let mut failures = Failures::new();
    let mut note = |what: &str, outcome: Result<Option<String>>| match outcome {
        Ok(None) => {}
        Ok(Some(failure)) => failures.push(format!("{what}: {failure}")),
        Err(error) => failures.push(format!("{what}: a valid call failed: {error}")),
    };
    let options = Options {
        layout: Layout::TimeMajor,
        reverse: true,
        save: Save::Recompute,
        ..Options::default()
    };
    for (heads, head_dim) in [(2, 4), (1, 24), (3, 65)] {
        let sizes = format!("{heads} heads of {head_dim}");
        let problem = Problem::new(3, 5, heads, head_dim);
        let others = [
            Problem::new(1, 1, heads, head_dim),
            Problem::new(70, 9, heads, head_dim),
            problem.with(options),
            problem.with(Options { forward_clip: Some(0.5), ..Options::default() }),
        ];
        for other in &others {
            let shared = shared(backend, backend, (&Lstm, &problem), (&Lstm, other), true);
            note(&format!("LSTM, {sizes}, packed for {other:?}"), shared);
        }
        let (a, b) = (Leaky { a: 0.3 }, Leaky { a: 0.7 });
        note(
            "another constant of the cell",
            shared(backend, backend, (&a, &problem), (&b, &problem), true),
        );
        for (i, other) in suite.same_bits_as.iter().enumerate() {
            let must = false;
            let shared = shared(backend, other, (&Lstm, &problem), (&Lstm, &problem), must);
            note(&format!("LSTM, {sizes}, packed by instance {i} of same_bits_as"), shared);
        }
        // Some of these have equally many elements of R (4·N·D·D) or of b (4·N·D).
        for (other_heads, other_dim) in [
            (heads, head_dim + 1),
            (heads + 1, head_dim),
            (4 * heads, head_dim.div_ceil(2)),
            (head_dim, heads),
            (1, 1),
        ] {
            let other = Problem::new(3, 5, other_heads, other_dim);
            if other != problem {
                let rejected = rejected(backend, (&Lstm, &problem), (&Lstm, &other));
                note(
                    &format!("LSTM, {sizes}, weights of {other_heads} heads of {other_dim}"),
                    rejected,
                );
            }
        }
        note("LSTM, weights of a GRU", rejected(backend, (&Lstm, &problem), (&Gru, &problem)));
        note(
            "LSTM, weights of an Elman network",
            rejected(backend, (&Lstm, &problem), (&Elman, &problem)),
        );
        note(
            "Elman network, weights of an LSTM",
            rejected(backend, (&Elman, &problem), (&Lstm, &problem)),
        );
    }
    failures
}

/// Packs fixed pseudorandom weights with `plan`.
fn pack<B: Backend>(backend: &B, plan: &B::Plan<f32, f32>) -> Result<Weights<B, f32>> {
    let numbers = |seed, shape: &[usize]| -> Vec<f32> {
        Random::new(seed)
            .normals(shape.iter().product(), 0.3)
            .into_iter()
            .map(|v| v as f32)
            .collect()
    };
    let (r, b) = (
        backend.upload(&numbers(1, &plan.shapes().r()))?,
        backend.upload(&numbers(2, &plan.shapes().b()))?,
    );
    plan.pack(backend.view(&r), backend.view(&b))
}

/// Returns the states of a forward pass, d_wx of a backward pass and h of a step, or the first
/// error. Each call uses its own weights.
fn calls<B: Backend>(
    backend: &B,
    plan: &B::Plan<f32, f32>,
    weights: [&Weights<B, f32>; 3],
) -> Result<[Vec<f32>; 3]> {
    let shapes = plan.shapes();
    let size = |shape: &[usize]| shape.iter().product::<usize>();
    let ramp = |n: usize| (0..n).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect::<Vec<_>>();
    let wx = backend.upload(&ramp(size(&shapes.wx())))?;
    let mut states = backend.alloc(size(&shapes.states()))?;
    let mut saved = plan.saved()?;
    plan.forward(Forward {
        states: Some(backend.view_mut(&mut states)),
        saved: Some(saved.view_mut()),
        ..Forward::new(weights[0], backend.view(&wx))
    })?;
    let d_h = backend.upload(&ramp(size(&shapes.h())))?;
    let mut d_wx = backend.alloc(size(&shapes.wx()))?;
    plan.backward(Backward {
        wx: Some(backend.view(&wx)),
        d_h: Some(backend.view(&d_h)),
        ..Backward::new(
            weights[1],
            backend.view(&states),
            saved.view(),
            backend.view_mut(&mut d_wx),
        )
    })?;
    let (input, rows) = (shapes.external * shapes.units(), shapes.batch * shapes.units());
    let (wx, mut h) = (backend.upload(&ramp(shapes.batch * input))?, backend.alloc(rows)?);
    let mut state = backend.alloc(size(&shapes.state()))?;
    plan.step(Step {
        weights: weights[2],
        wx: backend.view(&wx),
        state: backend.view_mut(&mut state),
        h: Some(backend.view_mut(&mut h)),
    })?;
    let result = |buffer| backend.download(backend.view(buffer));
    Ok([result(&states)?, result(&d_wx)?, result(&h)?])
}

/// Runs `own` on `backend` with weights that `other` packed on `packer`, and returns a message if
/// something went wrong. Unless `must_accept`, the weights may be rejected, but if accepted they
/// must yield the right results.
fn shared<B: Backend, C: Cell>(
    backend: &B,
    packer: &B,
    own: (&C, &Problem),
    other: (&C, &Problem),
    must_accept: bool,
) -> Result<Option<String>> {
    let plan = backend.plan::<f32, f32, C>(own.0, own.1)?;
    let foreign = pack(packer, &packer.plan::<f32, f32, C>(other.0, other.1)?)?;
    if !plan.accepts(&foreign) {
        return match calls(backend, &plan, [&foreign; 3]) {
            _ if must_accept => {
                Ok(Some(format!("rejected: {foreign:?}, wanted {:?}", plan.weights_layout())))
            }
            Err(Error::Argument { tensor: "weights", .. }) => Ok(None),
            got => Ok(Some(format!("not accepted, but a call returned {got:?}"))),
        };
    }
    let mine = pack(backend, &plan)?;
    let (got, want) = (calls(backend, &plan, [&foreign; 3])?, calls(backend, &plan, [&mine; 3])?);
    Ok((got != want).then(|| "accepted, but the results differ".into()))
}

/// Passes weights of `other` to each call of `own` in turn, and returns a message if one of the
/// calls accepts them.
fn rejected<B: Backend, C: Cell, D: Cell>(
    backend: &B,
    own: (&C, &Problem),
    other: (&D, &Problem),
) -> Result<Option<String>> {
    let plan = backend.plan::<f32, f32, C>(own.0, own.1)?;
    let foreign = pack(backend, &backend.plan::<f32, f32, D>(other.0, other.1)?)?;
    let mine = pack(backend, &plan)?;
    if plan.accepts(&foreign) {
        return Ok(Some("accepted".into()));
    }
    for (i, name) in ["forward", "backward", "step"].into_iter().enumerate() {
        let mut weights = [&mine; 3];
        weights[i] = &foreign;
        match calls(backend, &plan, weights) {
            Err(Error::Argument { tensor: "weights", .. }) => {}
            got => {
                return Ok(Some(format!("{name} returned {got:?}, wanted an error for weights")));
            }
        }
    }
    Ok(None)
}
