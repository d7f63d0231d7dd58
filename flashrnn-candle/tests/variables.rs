//! Tests variables that change in place. Every call uses their current values, and a backward pass
//! uses the values of its forward pass.

use candle_core::{DType, Device, ModuleT, Result, Tensor, Var};
use candle_nn::{AdamW, Optimizer, VarBuilder, VarMap};
use flashrnn::{Elman, Lstm, Options, Save};
use flashrnn_candle::{Gru, Recurrence, RnnConfig, SequenceOptions};

/// Makes a module over the parameters of `vb`.
fn module(vb: VarBuilder) -> Result<Gru> {
    Gru::new(3, 8, RnnConfig { heads: 2, ..RnnConfig::default() }, vb)
}

/// Makes a module over the variables of `map`.
fn over(map: &VarMap) -> Result<Gru> {
    module(VarBuilder::from_varmap(map, DType::F32, &Device::Cpu))
}

fn input() -> Result<Tensor> {
    Tensor::arange(0f32, 30.0, &Device::Cpu)?.sin()?.reshape((2, 5, 3))
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

fn output(gru: &Gru) -> Result<Vec<f32>> {
    values(&gru.forward_t(&input()?, false)?)
}

/// Returns the output of a new module over copies of the variables.
fn from_copies(map: &VarMap) -> Result<Vec<f32>> {
    let data = map.data().lock().expect("no panic");
    let copies = data.iter().map(|(name, var)| Ok((name.clone(), var.copy()?.detach())));
    let copies = copies.collect::<Result<_>>()?;
    drop(data);
    output(&module(VarBuilder::from_tensors(copies, DType::F32, &Device::Cpu))?)
}

#[test]
fn calls_use_the_current_values() -> Result<()> {
    let map = VarMap::new();
    let gru = over(&map)?;
    // A module over detached aliases of the variables' memory.
    let data = map.data().lock().expect("no panic").clone();
    let aliases = data.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor())).collect();
    let alias = module(VarBuilder::from_tensors(aliases, DType::F32, &Device::Cpu))?;
    let mut before = output(&gru)?;
    let mut changed = |by: &str| -> Result<()> {
        let now = output(&gru)?;
        assert_ne!(now, before, "{by}");
        assert_eq!(now, from_copies(&map)?, "{by}");
        assert_eq!(now, output(&alias)?, "{by}, through an alias");
        before = now;
        Ok(())
    };
    for name in ["w_l0", "r_l0", "b_z_l0", "b_n_h_l0"] {
        data[name].set(&(data[name].as_tensor() * 1.5)?.affine(1.0, 0.1)?.detach())?;
        changed(&format!("Var::set of {name}"))?;
    }
    let mut optimiser = AdamW::new_lr(map.all_vars(), 0.1)?;
    for _ in 0..3 {
        let loss = gru.forward_t(&input()?, true)?.sqr()?.sum_all()?;
        optimiser.backward_step(&loss)?;
        changed("AdamW")?;
    }
    Ok(())
}

#[test]
fn a_frozen_module_keeps_its_values() -> Result<()> {
    let map = VarMap::new();
    let gru = over(&map)?;
    let frozen = gru.freeze()?;
    let frozen_output = || values(&frozen.forward(&input()?, &SequenceOptions::default())?.h);
    let before = output(&gru)?;
    assert_eq!(frozen_output()?, before);
    for var in map.all_vars() {
        var.set(&var.affine(2.0, 0.3)?.detach())?;
    }
    assert_eq!(frozen_output()?, before);
    assert_ne!(output(&gru)?, before);
    assert_eq!(
        values(&gru.freeze()?.forward(&input()?, &SequenceOptions::default())?.h)?,
        output(&gru)?
    );
    Ok(())
}

/// A stateful model stores its new state in the variable that held the initial one.
#[test]
fn an_initial_state_may_be_overwritten_before_the_backward_pass() -> Result<()> {
    let run = |overwrite: bool, save: Save| -> Result<Vec<Vec<f32>>> {
        let wx = Var::from_tensor(
            &Tensor::arange(0f32, 24.0, &Device::Cpu)?.sin()?.reshape((1, 2, 4, 1, 3))?,
        )?;
        let r = Var::from_tensor(
            &Tensor::arange(0f32, 36.0, &Device::Cpu)?.cos()?.reshape((4, 1, 3, 3))?,
        )?;
        let b = Var::zeros((4, 1, 3), DType::F32, &Device::Cpu)?;
        let s0 = Var::from_tensor(
            &Tensor::arange(0f32, 6.0, &Device::Cpu)?.cos()?.reshape((2, 1, 1, 3))?,
        )?;
        let rnn = Recurrence::new(Lstm).with(Options { save, ..Options::default() });
        let options = SequenceOptions { s0: Some(&s0), ..SequenceOptions::default() };
        let out = rnn.forward(&wx, &r, &b, &options)?;
        if overwrite {
            s0.set(&out.last.detach())?;
            r.set(&r.zeros_like()?)?;
            b.set(&b.ones_like()?)?;
        }
        let grads = out.h.sum_all()?.backward()?;
        [&wx, &r, &b, &s0]
            .into_iter()
            .map(|var| values(grads.get(var).expect("a gradient")))
            .collect()
    };
    for save in [Save::Gates, Save::Recompute] {
        assert_eq!(run(true, save)?, run(false, save)?);
    }
    Ok(())
}

fn error(result: Result<candle_core::backprop::GradStore>) -> String {
    result.err().map(|error| error.to_string()).unwrap_or_default()
}

#[test]
fn changed_inputs_that_backward_reads_are_an_error() -> Result<()> {
    for (name, says) in
        [("w_l0", "the layer's W was changed in place"), ("x", "x was changed in place")]
    {
        let map = VarMap::new();
        let gru = over(&map)?;
        let x = Var::from_tensor(&input()?)?;
        let loss = gru.forward_t(&x, true)?.sum_all()?;
        loss.backward()?;
        let var = if name == "x" {
            x.clone()
        } else {
            map.data().lock().expect("no panic")[name].clone()
        };
        let before = var.copy()?.detach();
        var.set(&var.affine(1.0, 0.01)?.detach())?;
        let message = error(loss.backward());
        assert!(message.contains(says), "{message}");
        var.set(&before)?;
        loss.backward()?;
    }
    let wx = Var::zeros((2, 3, 1, 1, 4), DType::F32, &Device::Cpu)?;
    let (r, b) = (
        Tensor::zeros((1, 1, 4, 4), DType::F32, &Device::Cpu)?,
        Tensor::zeros((1, 1, 4), DType::F32, &Device::Cpu)?,
    );
    for (save, says) in [(Save::Gates, ""), (Save::Recompute, "wx was changed in place")] {
        let rnn = Recurrence::new(Elman).with(Options { save, ..Options::default() });
        let loss = rnn.forward(&wx, &r, &b, &SequenceOptions::default())?.h.sum_all()?;
        wx.set(&wx.affine(1.0, 1.0)?.detach())?;
        let message = error(loss.backward());
        assert!(message.contains(says) && message.is_empty() == says.is_empty(), "{message}");
    }
    Ok(())
}
