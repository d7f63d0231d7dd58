//! Compares modules of several layers and directions, and their gradients, with the f64 reference.

use candle_core::{Device, Error, Result, Tensor, Var};
use flashrnn::{Cell, Elman, Gru, Layout, Lstm, Options, Problem, Save, Shapes, Slstm};
use flashrnn_candle::{Rnn, RnnConfig, RnnOutput, SequenceOptions, Weights};

use crate::compare::{F64, Types, noise, relative_error, values, var_on};
use crate::devices::devices;
use crate::stack::{self, Module};

const INPUT: usize = 3;
const BATCH: usize = 4;
const TIME: usize = 6;

/// A configuration, and which optional inputs a call has.
#[derive(Clone, Copy, Debug)]
struct Case {
    config: RnnConfig,
    head_dim: usize,
    s0: bool,
    lengths: bool,
    resets: bool,
}

fn plain() -> Case {
    Case { config: RnnConfig::default(), head_dim: 5, s0: false, lengths: false, resets: false }
}

/// Makes the variables of every layer and direction.
fn variables(device: &Device, case: &Case, shapes: &Shapes) -> Result<Vec<Weights>> {
    let dtype = F64.on(device).wx;
    let units = shapes.units();
    let directions = if case.config.bidirectional { 2 } else { 1 };
    let mut weights = vec![];
    for index in 0..case.config.layers * directions {
        let input = if index < directions { INPUT } else { directions * units };
        let seed = 10 * (index as u64 + 1);
        let make = |dims: &[usize], seed, scale| {
            let data = noise(dims.iter().product(), seed, scale);
            Ok::<_, Error>(var_on(device, &data, dims, dtype)?.as_tensor().clone())
        };
        weights.push(Weights {
            w: make(&[shapes.external * units, input], seed, 0.8)?,
            r: make(&shapes.r(), seed + 1, 0.7)?,
            b: make(&shapes.b(), seed + 2, 0.5)?,
        });
    }
    Ok(weights)
}

/// Splits `[S, L, B, N, D]` into one list per layer and direction.
fn by_layer(states: &Tensor) -> Result<Vec<Vec<f64>>> {
    (0..states.dim(1)?).map(|index| values(&states.narrow(1, index, 1)?)).collect()
}

/// The inputs of a call besides the weights.
struct Arguments {
    x: Var,
    s0: Var,
    lengths: Vec<i64>,
    resets: Vec<u8>,
}

impl Arguments {
    fn new<C: Cell>(device: &Device, rnn: &Rnn<C>, outer: [usize; 2]) -> Result<Self> {
        let dtype = F64.on(device).wx;
        let dims = [outer[0], outer[1], INPUT];
        // The initial state is the final state of another run, as arbitrary ones are not valid for
        // sLSTM.
        let earlier = var_on(device, &noise(BATCH * TIME * INPUT, 2, 1.0), &dims, dtype)?;
        let earlier = rnn.forward(&earlier, &SequenceOptions::default(), false)?;
        Ok(Self {
            x: var_on(device, &noise(BATCH * TIME * INPUT, 1, 1.5), &dims, dtype)?,
            s0: Var::from_tensor(&earlier.last.detach())?,
            lengths: (0..BATCH).map(|i| ((i * 5 + 3) % (TIME + 1)) as i64).collect(),
            resets: (0..BATCH * TIME).map(|i| u8::from(i % 5 == 3)).collect(),
        })
    }

    fn run<C: Cell>(&self, rnn: &Rnn<C>, case: &Case) -> Result<RnnOutput> {
        let device = self.x.device();
        let lengths = Tensor::new(self.lengths.as_slice(), device)?;
        let outer = (self.x.dim(0)?, self.x.dim(1)?);
        let resets = Tensor::from_slice(&self.resets, outer, device)?;
        let options = SequenceOptions {
            s0: case.s0.then_some(self.s0.as_tensor()),
            lengths: case.lengths.then_some(&lengths),
            resets: case.resets.then_some(&resets),
        };
        rnn.forward(&self.x, &options, false)
    }

    fn reference<C: Cell>(&self, cell: C, case: &Case, weights: &[Weights]) -> Result<Module<C>> {
        let weights = weights.iter().map(|Weights { w, r, b }| {
            Ok(stack::Weights { w: values(w)?, r: values(r)?, b: values(b)? })
        });
        Ok(Module {
            cell,
            config: case.config,
            problem: Problem::new(BATCH, TIME, case.config.heads, case.head_dim),
            x: values(&self.x)?,
            weights: weights.collect::<Result<_>>()?,
            s0: case.s0.then(|| by_layer(&self.s0)).transpose()?,
            lengths: case.lengths.then(|| self.lengths.iter().map(|&n| n as i32).collect()),
            resets: case.resets.then(|| self.resets.clone()),
        })
    }
}

/// Compares one case on every device.
fn compare<C: Cell>(cell: C, case: &Case) -> Result<()> {
    devices().iter().try_for_each(|device| {
        let mut case = *case;
        // Rounds products on a GPU; tests/cuda_device.rs tests it.
        case.config.options.tf32 &= device.is_cpu();
        compare_on(device, cell.clone(), &case)
    })
}

/// Compares one case. The loss is a weighted sum of the outputs, and its gradients are the incoming
/// gradients of the reference.
fn compare_on<C: Cell>(device: &Device, cell: C, case: &Case) -> Result<()> {
    let Types { wx: dtype, tolerance, .. } = F64.on(device);
    let Case { config, head_dim, .. } = *case;
    let problem = Problem::new(BATCH, TIME, config.heads, head_dim).with(config.options);
    let shapes = problem.shapes::<C>().map_err(Error::wrap)?;
    let weights = variables(device, case, &shapes)?;
    let rnn = Rnn::from_weights(cell.clone(), config, &weights)?;
    let arguments = Arguments::new(device, &rnn, shapes.resets())?;
    let out = arguments.run(&rnn, case)?;

    // loss = Σ d_h · h + Σ d_last · last
    let d_h = var_on(device, &noise(out.h.elem_count(), 3, 1.0), out.h.dims(), dtype)?;
    let d_last = var_on(device, &noise(out.last.elem_count(), 4, 1.0), out.last.dims(), dtype)?;
    let weigh = |x: &Tensor, d: &Tensor| (x * d.detach())?.sum_all();
    let grads = (weigh(&out.h, &d_h)? + weigh(&out.last, &d_last)?)?.backward()?;

    let reference = arguments.reference(cell, case, &weights)?;
    let want = reference.forward().map_err(Error::wrap)?;
    let (d_x, layers) =
        reference.backward(&want, values(&d_h)?, &by_layer(&d_last)?).map_err(Error::wrap)?;

    let gradient = |name: &str, var: &Tensor| {
        let grad = grads.get(var).unwrap_or_else(|| panic!("{name}: no gradient"));
        assert_eq!(grad.dims(), var.dims(), "{name}");
        grad.clone()
    };
    let check = |name: &str, got: &[f64], want: &[f64]| {
        let error = relative_error(got, want);
        let name = format!("{} {case:?} on {device:?}: {name}", C::NAME);
        assert!(error <= tolerance, "{name} is off by {error:e}");
    };
    check("h", &values(&out.h)?, &want.h);
    check("d_x", &values(&gradient("d_x", &arguments.x))?, &d_x);
    let last = by_layer(&out.last)?;
    let d_s0 = case.s0.then(|| by_layer(&gradient("d_s0", &arguments.s0))).transpose()?;
    for (index, (Weights { w, r, b }, layer)) in weights.iter().zip(&layers).enumerate() {
        check(&format!("last {index}"), &last[index], &want.last[index]);
        for (name, var, want) in
            [("d_w", w, &layer.d_w), ("d_r", r, &layer.d_r), ("d_b", b, &layer.d_b)]
        {
            check(&format!("{name} {index}"), &values(&gradient(name, var))?, want);
        }
        if let Some(d_s0) = &d_s0 {
            check(&format!("d_s0 {index}"), &d_s0[index], &layer.d_s0);
        }
    }
    Ok(())
}

fn compare_cells(case: &Case) -> Result<()> {
    compare(Elman, case)?;
    compare(Gru, case)?;
    compare(Lstm, case)?;
    compare(Slstm, case)
}

/// Returns the options of the recurrence, each alone.
fn options() -> [Options; 7] {
    let off = Options::default();
    [
        off,
        Options { layout: Layout::TimeMajor, ..off },
        Options { reverse: true, ..off },
        Options { forward_clip: Some(0.3), ..off },
        Options { recurrent_grad_clip: Some(0.2), ..off },
        Options { cut_recurrent_grad: true, ..off },
        Options { save: Save::Recompute, ..off },
    ]
}

#[test]
fn modules_agree_with_the_reference_with_each_option_alone() -> Result<()> {
    for options in options() {
        for (layers, bidirectional) in [(1, false), (2, false), (2, true)] {
            if bidirectional && options.reverse {
                continue; // an error
            }
            let config = RnnConfig { layers, bidirectional, options, ..RnnConfig::default() };
            compare_cells(&Case { config, ..plain() })?;
        }
    }
    Ok(())
}

#[test]
fn modules_agree_with_the_reference_with_each_optional_input_alone() -> Result<()> {
    for (heads, head_dim) in [(1, 5), (3, 2)] {
        for (layers, bidirectional) in [(1, true), (3, false), (2, true)] {
            let config = RnnConfig { layers, bidirectional, heads, ..RnnConfig::default() };
            let case = Case { config, head_dim, ..plain() };
            compare_cells(&Case { s0: true, ..case })?;
            compare_cells(&Case { lengths: true, ..case })?;
            compare_cells(&Case { resets: true, ..case })?;
            compare_cells(&Case { s0: true, lengths: true, resets: true, ..case })?;
        }
    }
    Ok(())
}

#[test]
fn modules_agree_with_the_reference_with_random_options() -> Result<()> {
    for seed in 0..40 {
        let draws = noise(16, seed + 100, 1.0);
        let flag = |i: usize| draws[i] > 0.0;
        let bidirectional = flag(0);
        let options = Options {
            layout: if flag(1) { Layout::TimeMajor } else { Layout::BatchMajor },
            reverse: flag(2) && !bidirectional,
            forward_clip: flag(3).then_some(0.4),
            recurrent_grad_clip: flag(4).then_some(0.3),
            cut_recurrent_grad: flag(5) && flag(6),
            tf32: flag(7),
            save: if flag(8) { Save::Recompute } else { Save::Gates },
        };
        let config = RnnConfig {
            layers: 1 + (draws[9] + 1.0) as usize,
            bidirectional,
            heads: 1 + usize::from(flag(10)),
            options,
            ..RnnConfig::default()
        };
        let head_dim = 1 + (2.0 * (draws[11] + 1.0)) as usize;
        let case = Case { config, head_dim, s0: flag(12), lengths: flag(13), resets: flag(14) };
        compare_cells(&case)?;
    }
    Ok(())
}
