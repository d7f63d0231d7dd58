//! Computing second derivatives is an error, for every gradient of the operator and of a module.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, ModuleT, Result, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use flashrnn::Elman;
use flashrnn_candle::{Gru, Lstm, Recurrence, RnnConfig, SequenceOptions};

/// Asserts that a penalty on the gradient of `var` is an error unless the gradient is detached.
fn assert_no_second_derivative(name: &str, grads: &GradStore, var: &Tensor) -> Result<()> {
    let grad = grads.get(var).unwrap_or_else(|| panic!("{name} has no gradient"));
    let message =
        grad.sqr()?.sum_all()?.backward().err().map(|error| error.to_string()).unwrap_or_default();
    assert!(
        message.contains("no second derivatives") && message.contains("detach"),
        "{name}: {message:?}"
    );
    grad.detach().sqr()?.sum_all()?.backward()?;
    Ok(())
}

#[test]
fn operator_has_no_second_derivatives() -> Result<()> {
    let wx = Var::zeros((1, 2, 1, 1, 3), DType::F64, &Device::Cpu)?;
    let r = Var::zeros((1, 1, 3, 3), DType::F64, &Device::Cpu)?;
    let b = Var::ones((1, 1, 3), DType::F64, &Device::Cpu)?;
    let s0 = Var::ones((1, 1, 1, 3), DType::F64, &Device::Cpu)?;
    for s0 in [None, Some(s0.as_tensor())] {
        let options = SequenceOptions { s0, ..SequenceOptions::default() };
        let grads = Recurrence::new(Elman)
            .forward(&wx, &r, &b, &options)?
            .h
            .sqr()?
            .sum_all()?
            .backward()?;
        let vars = [("wx", wx.as_tensor()), ("r", &r), ("b", &b)];
        for (name, var) in vars.into_iter().chain(s0.map(|s0| ("s0", s0))) {
            assert_no_second_derivative(name, &grads, var)?;
        }
    }
    Ok(())
}

#[test]
fn modules_have_no_second_derivatives() -> Result<()> {
    let x = Var::ones((1, 2, 3), DType::F64, &Device::Cpu)?;
    for torch in [false, true] {
        let map = VarMap::new();
        let vb = VarBuilder::from_varmap(&map, DType::F64, &Device::Cpu);
        let h = if torch {
            Gru::from_torch(3, 4, RnnConfig::default(), vb)?.forward_t(&x, true)?
        } else {
            Lstm::new(3, 4, RnnConfig::default(), vb)?.forward_t(&x, true)?
        };
        let grads = h.sqr()?.sum_all()?.backward()?;
        assert_no_second_derivative("x", &grads, &x)?;
        for (name, var) in map.data().lock().expect("no panic").iter() {
            assert_no_second_derivative(name, &grads, var)?;
        }
    }
    Ok(())
}

/// If candle is told to keep the graphs of gradients, differentiating a gradient that was
/// propagated through other operations is an error as well.
#[test]
fn earlier_operations_have_no_second_derivatives() -> Result<()> {
    const KEEP: &str = "CANDLE_GRAD_DO_NOT_DETACH";
    if std::env::var_os(KEEP).is_none() {
        // candle reads the variable once per thread, so the test runs in a separate process.
        let this = std::env::current_exe()?;
        let name = "earlier_operations_have_no_second_derivatives";
        let status =
            std::process::Command::new(this).args(["--exact", name]).env(KEEP, "1").status()?;
        assert!(status.success());
        return Ok(());
    }
    let x = Var::ones((1, 2, 1, 1, 3), DType::F64, &Device::Cpu)?;
    let (r, b) = (
        Tensor::ones((1, 1, 3, 3), DType::F64, &Device::Cpu)?,
        Tensor::ones((1, 1, 3), DType::F64, &Device::Cpu)?,
    );
    let wx = x.sin()?;
    let grads = Recurrence::new(Elman)
        .forward(&wx, &r, &b, &SequenceOptions::default())?
        .h
        .sum_all()?
        .backward()?;
    assert_no_second_derivative("x", &grads, &x)
}
