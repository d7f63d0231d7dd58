//! Times the forward and backward pass of an LSTM layer on tensors of a CUDA device, with and
//! without the gradient of x, and its products with W. The rest is the recurrence, which `flashrnn
//! bench` times.
//!
//! ```sh
//! cargo run --release -p flashrnn-candle --features candle-cuda --example layer_speed
//! ```

use std::collections::HashMap;
use std::time::Instant;

use candle_core::{DType, Device, Error, Result, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use flashrnn_candle::{Lstm, RnnConfig, SequenceOptions};

const BATCH: usize = 16;
const TIME: usize = 1024;
/// Calls per measurement, which ends when the GPU has done all of them.
const CALLS: usize = 20;
const MEASUREMENTS: usize = 7;

/// Makes an LSTM over variables of type `dtype`.
fn layer(device: &Device, dtype: DType, heads: usize, units: usize) -> Result<Lstm> {
    let map = VarMap::new();
    let config = RnnConfig { heads, ..RnnConfig::default() };
    Lstm::new(units, units, config, VarBuilder::from_varmap(&map, DType::F32, device))?;
    let data = map.data().lock().map_err(|_| Error::msg("a thread panicked"))?;
    let mut vars = HashMap::new();
    for (name, var) in data.iter() {
        let var = Var::from_tensor(&var.to_dtype(dtype)?)?;
        vars.insert(name.clone(), var.as_tensor().clone());
    }
    Lstm::new(units, units, config, VarBuilder::from_tensors(vars, dtype, device))
}

/// Returns the milliseconds of one call, with several calls enqueued at once, and of one call that
/// is waited for. Both are medians.
fn time(device: &Device, mut call: impl FnMut() -> Result<()>) -> Result<[f64; 2]> {
    call()?;
    device.synchronize()?;
    let mut measure = |calls: usize| -> Result<f64> {
        let mut times = vec![];
        for _ in 0..MEASUREMENTS {
            let start = Instant::now();
            (0..calls).try_for_each(|_| call())?;
            device.synchronize()?;
            times.push(start.elapsed().as_secs_f64() * 1e3 / calls as f64);
        }
        times.sort_by(f64::total_cmp);
        Ok(times[MEASUREMENTS / 2])
    };
    Ok([measure(CALLS)?, measure(1)?])
}

/// Times a layer and its parts, and prints a row.
fn measure(name: &str, device: &Device, dtype: DType, heads: usize, head_dim: usize) -> Result<()> {
    let units = heads * head_dim;
    let lstm = layer(device, dtype, heads, units)?;
    let x = Tensor::randn(0f32, 1.0, (BATCH, TIME, units), device)?.to_dtype(dtype)?;
    let options = SequenceOptions::default();
    let pass = |x: &Tensor| lstm.forward(x, &options, true)?.h.backward().map(drop);
    let variable = Var::from_tensor(&x)?;
    let all = time(device, || pass(&variable))?;
    let first = time(device, || pass(&x))?;

    // What is not the recurrence: the products with W, and the gradient of h that the backward pass
    // starts from.
    let w = lstm.weights()?[0].w.detach();
    let rows = x.flatten_to(1)?;
    let d = rows.matmul(&w.t()?)?;
    let wx = time(device, || rows.matmul(&w.t()?).map(drop))?;
    let d_x = time(device, || d.matmul(&w).map(drop))?;
    let d_w = time(device, || d.t()?.matmul(&rows).map(drop))?;
    let h = lstm.forward(&x, &options, false)?.h.detach();
    let ones = time(device, || h.ones_like()?.contiguous().map(drop))?;
    print!("{name:11} {dtype:?} {heads} x {head_dim}:");
    let parts = [("layer", all), ("without d_x", first), ("W x", wx), ("d_x", d_x), ("d_W", d_w)];
    for (part, [many, one]) in parts.into_iter().chain([("d_h", ones)]) {
        print!("  {part} {many:.3} {one:.3}");
    }
    println!();
    Ok(())
}

fn main() -> Result<()> {
    let devices =
        [("new_cuda", Device::new_cuda(0)?), ("with_stream", Device::new_cuda_with_stream(0)?)];
    println!("ms forward+backward, B = {BATCH}, T = {TIME}: {CALLS} calls at once, one alone");
    for (name, device) in &devices {
        for dtype in [DType::F32, DType::BF16] {
            for (heads, head_dim) in [(12, 64), (1, 768)] {
                measure(name, device, dtype, heads, head_dim)?;
            }
        }
    }
    Ok(())
}
