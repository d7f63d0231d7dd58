//! Compares modules with PyTorch's, and the sLSTM with xlstm's, on vectors that
//! `vectors/generate.py` has written.

mod devices;

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{DType, Device, Result, Tensor, safetensors};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use flashrnn_candle::xlstm::Arrangement;
use flashrnn_candle::{FromTorch, Recurrence, Rnn, RnnConfig, SequenceOptions, load_variables};

use devices::devices;

/// The allowed difference from PyTorch's outputs, which are of the order of 1 and computed in f32.
const OUTPUT: f64 = 1e-5;
/// The allowed difference from PyTorch's parameters after 20 steps of AdamW. The optimiser divides
/// by the root of the mean squared gradient, which amplifies the rounding of small gradients.
const PARAMETER: f64 = 1e-4;

type Tensors = HashMap<String, Tensor>;

/// Returns the contents of a file of vectors, which this program contains so that it runs on any
/// machine.
fn contents(name: &str) -> &'static [u8] {
    match name {
        "lstm" => include_bytes!("vectors/lstm.safetensors"),
        "gru" => include_bytes!("vectors/gru.safetensors"),
        "rnn" => include_bytes!("vectors/rnn.safetensors"),
        "slstm" => include_bytes!("vectors/slstm.safetensors"),
        _ => panic!("there are no vectors {name}"),
    }
}

fn load(name: &str, device: &Device) -> Result<Tensors> {
    safetensors::load_buffer(contents(name), device)
}

/// Makes an empty folder for the files of a test.
fn folder(name: &str) -> Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("flashrnn-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Returns the tensors whose names start with `prefix`, without it.
fn part(vectors: &Tensors, prefix: &str) -> Tensors {
    let named = |(name, tensor): (&String, &Tensor)| {
        Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone()))
    };
    vectors.iter().filter_map(named).collect()
}

#[track_caller]
fn assert_near(name: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    let cpu = &Device::Cpu;
    let difference = || got.to_device(cpu)? - want.to_device(cpu)?;
    let largest = || difference()?.abs()?.max_all()?.to_dtype(DType::F64)?.to_scalar::<f64>();
    let off = largest().unwrap_or(f64::NAN);
    assert!(off <= tolerance, "{name} is off by {off:e}, {tolerance:e} allowed");
}

/// Checks an output and the final states `[S, L, B, 1, H]` against PyTorch's, whose names start
/// with `prefix`.
fn check_outputs(h: &Tensor, last: &Tensor, vectors: &Tensors, prefix: &str) -> Result<()> {
    assert_near("y", h, &vectors[&format!("{prefix}y")], OUTPUT);
    for (state, name) in ["h_n", "c_n"].into_iter().enumerate().take(last.dim(0)?) {
        let name = format!("{prefix}{name}");
        assert_near(&name, &last.get(state)?.squeeze(2)?, &vectors[&name], OUTPUT);
    }
    Ok(())
}

fn agrees_with_pytorch<C: FromTorch>(name: &str) -> Result<()> {
    devices().iter().try_for_each(|device| agrees_with_pytorch_on::<C>(device, name))
}

fn agrees_with_pytorch_on<C: FromTorch>(device: &Device, name: &str) -> Result<()> {
    let vectors = load(name, device)?;
    let (x, target) = (&vectors["x"], &vectors["target"]);
    let (input, hidden) = (x.dim(2)?, vectors["y"].dim(2)? / 2);

    // Loads the parameters from a file of PyTorch's names.
    let folder = folder(name)?;
    let (before, after) = (folder.join("before"), folder.join("after"));
    safetensors::save(&part(&vectors, "before."), &before)?;
    let (vars, vb) = load_variables(&before, DType::F32, device)?;
    let config = RnnConfig { layers: 2, bidirectional: true, ..RnnConfig::default() };
    let rnn = Rnn::<C>::from_torch(input, hidden, config, vb)?;
    assert_eq!(vars.all_vars().len(), 16);

    let out = rnn.forward(x, &SequenceOptions::default(), false)?;
    check_outputs(&out.h, &out.last, &vectors, "")?;
    let lengths = Some(&vectors["lengths"]);
    let options = SequenceOptions { lengths, ..SequenceOptions::default() };
    let packed = rnn.forward(x, &options, false)?;
    check_outputs(&packed.h, &packed.last, &vectors, "packed.")?;
    let frozen = rnn.freeze()?.forward(x, &options)?;
    check_outputs(&frozen.h, &frozen.last, &vectors, "packed.")?;

    let params = ParamsAdamW { lr: 0.01, weight_decay: 0.01, ..ParamsAdamW::default() };
    let mut optimizer = AdamW::new(vars.all_vars(), params)?;
    for _ in 0..20 {
        let h = rnn.forward(x, &SequenceOptions::default(), true)?.h;
        optimizer.backward_step(&candle_nn::loss::mse(&h, target)?)?;
    }

    // Saves them under PyTorch's names.
    vars.save(&after)?;
    let (got, want) = (safetensors::load(&after, device)?, part(&vectors, "after."));
    std::fs::remove_dir_all(&folder)?;
    let sorted = |tensors: &Tensors| {
        let mut names: Vec<String> = tensors.keys().cloned().collect();
        names.sort();
        names
    };
    assert_eq!(sorted(&got), sorted(&want));
    for (name, want) in &want {
        assert_near(name, &got[name], want, PARAMETER);
    }
    Ok(())
}

#[test]
fn lstm_agrees_with_pytorch_before_and_after_training() -> Result<()> {
    agrees_with_pytorch::<flashrnn::Lstm>("lstm")
}

#[test]
fn gru_agrees_with_pytorch_before_and_after_training() -> Result<()> {
    agrees_with_pytorch::<flashrnn::Gru>("gru")
}

#[test]
fn elman_agrees_with_pytorch_before_and_after_training() -> Result<()> {
    agrees_with_pytorch::<flashrnn::Elman>("rnn")
}

#[test]
fn slstm_cells_agree_with_xlstm_in_both_arrangements() -> Result<()> {
    devices().iter().try_for_each(slstm_agrees_with_xlstm)
}

fn slstm_agrees_with_xlstm(device: &Device) -> Result<()> {
    let vectors = load("slstm", device)?;
    for (arrangement, prefix) in [(Arrangement::Vanilla, "vanilla."), (Arrangement::Cuda, "cuda.")]
    {
        let cell = part(&vectors, prefix);
        let (kernel, bias) = (&cell["_recurrent_kernel_"], &cell["_bias_"]);
        let (r, b) = arrangement.to_flashrnn(kernel, bias)?;
        let (_, heads, head_dim, _) = r.dims4()?;
        let (batch, time, _) = vectors["x"].dims3()?;
        let wx = vectors["x"].reshape((batch, time, 4, heads, head_dim))?;
        let out =
            Recurrence::new(flashrnn::Slstm).forward(&wx, &r, &b, &SequenceOptions::default())?;
        assert_near("y", &out.h.flatten_from(2)?, &vectors["y"], OUTPUT);
        assert_near("last", &out.last.flatten_from(2)?, &vectors["last"], OUTPUT);
        let (kernel_again, bias_again) = arrangement.from_flashrnn(&r, &b)?;
        assert_eq!((kernel_again.dims(), bias_again.dims()), (kernel.dims(), bias.dims()));
        assert_near("kernel", &kernel_again, kernel, 0.0);
        assert_near("bias", &bias_again, bias, 0.0);
    }
    Ok(())
}

#[test]
fn slstm_cells_of_another_shape_are_errors() -> Result<()> {
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu);
    let message = |result: Result<(Tensor, Tensor)>| {
        result.err().map(|error| error.to_string()).unwrap_or_default()
    };
    let (kernel, bias) = (zeros(&[3, 16, 4])?, zeros(&[48])?);
    let text = message(Arrangement::Cuda.to_flashrnn(&kernel, &bias));
    assert!(text.contains("got shape [3, 16, 4], wanted [N, D, 4·D] for Cuda"), "{text}");
    let text = message(Arrangement::Vanilla.to_flashrnn(&kernel, &zeros(&[40])?));
    assert!(text.contains("bias: got shape [40], wanted [48]"), "{text}");
    let text = message(Arrangement::Cuda.from_flashrnn(&zeros(&[3, 2, 4, 4])?, &bias));
    assert!(text.contains("r: got shape [3, 2, 4, 4], wanted [4, N, D, D]"), "{text}");
    Ok(())
}

#[test]
fn files_that_do_not_fit_the_configuration_are_errors() -> Result<()> {
    let folder = folder("files")?;
    let path = |name: &str| folder.join(name);
    for name in ["lstm", "gru"] {
        std::fs::write(path(name), contents(name))?;
    }
    let make = |path: PathBuf, layers, bidirectional| {
        let (_, vb) = load_variables(path, DType::F32, &Device::Cpu)?;
        let config = RnnConfig { layers, bidirectional, ..RnnConfig::default() };
        Rnn::<flashrnn::Lstm>::from_torch(5, 6, config, vb.pp("before"))
    };
    let message = |result: Result<Rnn<flashrnn::Lstm>>| {
        result.err().map(|error| error.to_string()).unwrap_or_default()
    };
    let lstm = || path("lstm");
    assert!(make(lstm(), 2, true).is_ok());
    for (result, wanted) in [
        (make(lstm(), 1, true), "found parameter before.weight_ih_l1, but layers is 1"),
        (make(lstm(), 2, false), "weight_ih_l0_reverse, but bidirectional is false"),
        (make(lstm(), 3, true), "parameter before.weight_ih_l2, wanted with shape [24, 12]"),
        (make(path("gru"), 2, true), "weight_ih_l0, wanted with shape [24, 5]"),
        (make(path("none"), 2, true), "can't load"),
    ] {
        let text = message(result);
        assert!(text.contains(wanted), "{text:?} does not contain {wanted:?}");
    }
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}
