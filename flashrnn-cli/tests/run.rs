//! Compares `flashrnn run` with the f64 reference, for every cell and option.

#[allow(dead_code)] // each test file uses a part of it
mod common;

use std::fs;

use common::{Folder, GPUS, Tensor, file, missing, stderr};
use flashrnn::reference::{self, Inputs, OutputGradients};
use flashrnn::{Cell, Elman, Gru, Layout, Lstm, Options, Problem, Save, Slstm};
use flashrnn_testsuite::{Case, Tensors, tolerance};
use safetensors::{Dtype, SafeTensors};

/// The allowed relative error in f64, which differs from the reference only in the order of sums
/// and in exp and tanh.
const F64: f64 = 1e-12;

/// Returns the values of a tensor of f64 or f32.
fn values(tensors: &SafeTensors<'_>, name: &str, shape: &[usize]) -> Vec<f64> {
    let tensor = tensors.tensor(name).unwrap_or_else(|_| panic!("the output has no {name}"));
    assert_eq!(tensor.shape(), shape, "{name}");
    let value = |bytes: &[u8; 8]| f64::from_le_bytes(*bytes);
    let narrow = |bytes: &[u8; 4]| f32::from_le_bytes(*bytes).into();
    match tensor.dtype() {
        Dtype::F64 => tensor.data().as_chunks().0.iter().map(value).collect(),
        Dtype::F32 => tensor.data().as_chunks().0.iter().map(narrow).collect(),
        other => panic!("{name} is {other}"),
    }
}

/// Returns the input tensors of a case.
fn tensors<C: Cell>(case: &Case) -> Vec<Tensor> {
    let shapes = case.problem.shapes::<C>().expect("a valid problem");
    let Inputs { wx, r, b, s0, lengths, resets, .. } = &case.inputs;
    let OutputGradients { d_states, d_last } = &case.d;
    let mut tensors = vec![
        Tensor::floats("Wx", &shapes.wx(), wx),
        Tensor::floats("R", &shapes.r(), r),
        Tensor::floats("b", &shapes.b(), b),
    ];
    tensors.extend(s0.as_ref().map(|v| Tensor::floats("states", &shapes.state(), v)));
    let integers = |v: &Vec<i32>| {
        Tensor::integers("lengths", &v.iter().map(|&n| n.into()).collect::<Vec<_>>())
    };
    tensors.extend(lengths.as_ref().map(integers));
    tensors.extend(resets.as_ref().map(|v| {
        let flags: Vec<u8> = v.iter().map(|&flag| (flag != 0).into()).collect();
        Tensor::flags("resets", &shapes.resets(), &flags)
    }));
    tensors.extend(d_states.as_ref().map(|v| Tensor::floats("d_states", &shapes.states(), v)));
    tensors.extend(d_last.as_ref().map(|v| Tensor::floats("d_last_states", &shapes.state(), v)));
    tensors
}

/// Runs a case by the command, and compares every output tensor with the reference.
fn same_as_reference<C: Cell>(cell: &C, problem: &Problem, tensors_given: Tensors) {
    let case =
        Case::random::<C, f64, f64>(cell, problem, tensors_given, 5).expect("a valid problem");
    let mut args = vec!["--cell", C::NAME, "--dtype", "f64", "--backward"];
    if problem.options.layout == Layout::TimeMajor {
        args.push("--time-major");
    }
    if problem.options.reverse {
        args.push("--reverse");
    }
    if problem.options.cut_recurrent_grad {
        args.push("--cut-recurrent-grad");
    }
    if problem.options.save == Save::Recompute {
        args.extend(["--save", "recompute"]);
    }
    let clip = problem.options.forward_clip.map(|v| v.to_string());
    args.extend(clip.iter().flat_map(|v| ["--forward-clip", v]));
    let clip = problem.options.recurrent_grad_clip.map(|v| v.to_string());
    args.extend(clip.iter().flat_map(|v| ["--recurrent-grad-clip", v]));

    let folder = Folder::new();
    let run = folder.run(&file(&tensors::<C>(&case)), &args);
    assert!(run.status.success(), "{args:?}: {}", stderr(&run));
    let bytes = fs::read(folder.output()).expect("an output file");
    let got = SafeTensors::deserialize(&bytes).expect("a valid safetensors file");

    let out = reference::forward(cell, problem, &case.inputs).expect("a valid problem");
    let d =
        reference::backward(cell, problem, &case.inputs, &out, &case.d).expect("a valid problem");
    let shapes = problem.shapes::<C>().expect("a valid problem");
    let wanted = [
        ("states", &shapes.states()[..], &out.states),
        ("last_states", &shapes.state(), &out.last),
        ("d_Wx", &shapes.wx(), &d.d_wx),
        ("d_R", &shapes.r(), &d.d_r),
        ("d_b", &shapes.b(), &d.d_b),
        ("d_states_initial", &shapes.state(), &d.d_s0),
    ];
    assert_eq!(got.len(), wanted.len());
    for (name, shape, want) in wanted {
        let error = flashrnn_testsuite::results::error(&values(&got, name, shape), want);
        assert!(error <= F64, "{} {args:?}: {name} has a relative error of {error:.1e}", C::NAME);
    }
}

/// Checks the options that change the result, alone and combined, and empty batches and sequences.
fn all_problems<C: Cell>(cell: &C) {
    let plain = Problem::new(3, 6, 2, 5);
    let problems = [
        plain.clone(),
        plain.with(Options { layout: Layout::TimeMajor, ..plain.options }),
        plain.with(Options { reverse: true, ..plain.options }),
        plain.with(Options { forward_clip: Some(0.3), ..plain.options }),
        plain.with(Options { recurrent_grad_clip: Some(0.1), ..plain.options }),
        plain.with(Options { cut_recurrent_grad: true, ..plain.options }),
        plain.with(Options { save: Save::Recompute, ..plain.options }),
        Problem::new(4, 7, 3, 3).with(Options {
            layout: Layout::TimeMajor,
            reverse: true,
            forward_clip: Some(0.3),
            recurrent_grad_clip: Some(0.1),
            save: Save::Recompute,
            ..Options::default()
        }),
        Problem::new(2, 0, 1, 4),
        Problem::new(0, 3, 1, 4),
        Problem::new(1, 1, 1, 1),
    ];
    for problem in &problems {
        for tensors in [Tensors::PLAIN, Tensors::ALL] {
            same_as_reference(cell, problem, tensors);
        }
    }
}

#[test]
fn elman() {
    all_problems(&Elman);
}

#[test]
fn gru() {
    all_problems(&Gru);
}

#[test]
fn lstm() {
    all_problems(&Lstm);
}

#[test]
fn slstm() {
    all_problems(&Slstm);
}

#[test]
fn element_types() {
    let case = Case::random::<Lstm, f64, f64>(&Lstm, &Problem::new(2, 3, 1, 4), Tensors::ALL, 1)
        .expect("a valid problem");
    let input = file(&tensors::<Lstm>(&case));
    let types = [
        ("f64", Dtype::F64, Dtype::F64),
        ("f32", Dtype::F32, Dtype::F32),
        ("bf16", Dtype::BF16, Dtype::F32),
        ("f16", Dtype::F16, Dtype::F32),
    ];
    for (dtype, narrow, wide) in types {
        let folder = Folder::new();
        let run = folder.run(&input, &["--cell", "lstm", "--dtype", dtype, "--backward"]);
        assert!(run.status.success(), "{dtype}: {}", stderr(&run));
        let bytes = fs::read(folder.output()).expect("an output file");
        let got = SafeTensors::deserialize(&bytes).expect("a valid safetensors file");
        for name in ["states", "d_Wx", "d_R", "d_b"] {
            assert_eq!(got.tensor(name).expect(name).dtype(), narrow, "{dtype} {name}");
        }
        for name in ["last_states", "d_states_initial"] {
            assert_eq!(got.tensor(name).expect(name).dtype(), wide, "{dtype} {name}");
        }
    }
}

#[test]
fn without_backward_no_gradients_are_written() {
    let case = Case::random::<Gru, f64, f64>(&Gru, &Problem::new(2, 3, 1, 4), Tensors::ALL, 1)
        .expect("a valid problem");
    let folder = Folder::new();
    let run = folder.run(&file(&tensors::<Gru>(&case)), &["--cell", "gru"]);
    assert!(run.status.success(), "{}", stderr(&run));
    let bytes = fs::read(folder.output()).expect("an output file");
    let got = SafeTensors::deserialize(&bytes).expect("a valid safetensors file");
    let mut names = got.names();
    names.sort_unstable();
    assert_eq!(names, ["last_states", "states"]);
    assert_eq!(folder.files().len(), 2, "only the input and the output: {:?}", folder.files());
}

/// Without a GPU, the command reports what is missing.
#[test]
fn gpus_agree_with_the_cpu() {
    let case = Case::random::<Lstm, f32, f32>(&Lstm, &Problem::new(3, 6, 2, 5), Tensors::ALL, 1)
        .expect("a valid problem");
    let input = file(&tensors::<Lstm>(&case));
    let run = |backend| {
        let folder = Folder::new();
        let args = ["--cell", "lstm", "--backward", "--save", "recompute", "--backend", backend];
        let run = folder.run(&input, &args);
        match run.status.success() {
            true => Ok(fs::read(folder.output()).expect("an output file")),
            false => Err(stderr(&run)),
        }
    };
    let on_cpu = run("cpu").expect("the CPU is available");
    let on_cpu = SafeTensors::deserialize(&on_cpu).expect("a valid safetensors file");
    for backend in GPUS {
        let on_gpu = match run(backend) {
            Ok(bytes) => bytes,
            Err(text) => {
                assert!(text.contains(&missing(backend)), "{text}");
                continue;
            }
        };
        let on_gpu = SafeTensors::deserialize(&on_gpu).expect("a valid safetensors file");
        assert_eq!(on_gpu.len(), on_cpu.len());
        for (name, tensor) in on_cpu.iter() {
            let [want, got] = [&on_cpu, &on_gpu].map(|file| values(file, name, tensor.shape()));
            let error = flashrnn_testsuite::results::error(&got, &want);
            // Each backend may differ from the exact result by the tolerance.
            assert!(
                error <= 2.0 * tolerance(flashrnn::Dtype::F32),
                "{backend}: {name} has a relative error of {error:.1e}"
            );
        }
    }
}
