//! Trains the same network with candle-nn's LSTM and with flashrnn's, taking turns, and prints the
//! time of a training step with each.
//!
//! ```sh
//! cargo run --release -p flashrnn-candle --example from_candle_nn -- [STEPS]
//! cargo run --release -p flashrnn-candle --features candle-cuda --example from_candle_nn -- 9 cuda
//! ```
//!
//! The functions [`before`] and [`after`] are the whole difference. Both networks start from the
//! same parameters, which have the same names and shapes in both.

use std::time::Instant;

use candle_core::{DType, Device, Error, Result, Tensor};
use candle_nn::{
    AdamW, LSTMConfig, Linear, Module, Optimizer, ParamsAdamW, RNN, VarBuilder, VarMap,
};
use flashrnn_candle::{Lstm, RnnConfig};

const BATCH: usize = 16;
const TIME: usize = 256;
/// The number of features, and of units.
const SIZE: usize = 512;

/// A layer, from `x [B, T, I]` to `h [B, T, H]`.
type Layer = Box<dyn Fn(&Tensor) -> Result<Tensor>>;

fn before(vb: VarBuilder) -> Result<Layer> {
    let lstm = candle_nn::lstm(SIZE, SIZE, LSTMConfig::default(), vb)?;
    Ok(Box::new(move |x| lstm.states_to_tensor(&lstm.seq(x)?)))
}

fn after(vb: VarBuilder) -> Result<Layer> {
    let lstm = Lstm::from_torch(SIZE, SIZE, RnnConfig::default(), vb)?;
    Ok(Box::new(move |x| Ok(lstm.forward(x, &Default::default(), true)?.h)))
}

/// A layer and a linear one with their parameters and optimiser.
struct Network {
    vars: VarMap,
    layer: Layer,
    head: Linear,
    optimizer: AdamW,
}

impl Network {
    fn new(device: &Device, layer: fn(VarBuilder) -> Result<Layer>) -> Result<Self> {
        let vars = VarMap::new();
        let vb = VarBuilder::from_varmap(&vars, DType::F32, device);
        let layer = layer(vb.pp("lstm"))?;
        let head = candle_nn::linear(SIZE, 1, vb.pp("head"))?;
        let optimizer = AdamW::new(vars.all_vars(), ParamsAdamW::default())?;
        Ok(Self { vars, layer, head, optimizer })
    }

    /// Takes over the parameters of another network.
    fn copy(&mut self, other: &Self) -> Result<()> {
        let others = other.vars.data().lock().map_err(|_| Error::msg("a thread panicked"))?;
        self.vars.set(others.iter().map(|(name, var)| (name, var.as_tensor())))
    }

    /// Trains for one step, and returns its loss and its time in milliseconds.
    fn step(&mut self, x: &Tensor, target: &Tensor) -> Result<[f64; 2]> {
        let start = Instant::now();
        let y = self.head.forward(&(self.layer)(x)?)?;
        let loss = candle_nn::loss::mse(&y, target)?;
        self.optimizer.backward_step(&loss)?;
        let milliseconds = start.elapsed().as_secs_f64() * 1e3;
        Ok([f64::from(loss.to_scalar::<f32>()?), milliseconds])
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let steps = arguments.next().map_or(Ok(9), |steps| steps.parse::<usize>());
    let steps = steps.map_err(Error::wrap)?.max(1);
    let on_gpu = arguments.next().is_some_and(|device| device == "cuda");
    let device = if on_gpu { Device::new_cuda(0)? } else { Device::Cpu };
    let x = Tensor::randn(0f32, 1.0, (BATCH, TIME, SIZE), &device)?;
    let target = x.narrow(2, 0, 1)?.contiguous()?;
    let (mut before, mut after) = (Network::new(&device, before)?, Network::new(&device, after)?);
    after.copy(&before)?;

    let mut times = [vec![], vec![]];
    let mut apart = 0f64;
    // The first step of each is a warm-up.
    for step in 0..=steps {
        let [loss, time] = before.step(&x, &target)?;
        let [our_loss, our_time] = after.step(&x, &target)?;
        apart = apart.max((our_loss - loss).abs() / loss);
        if step > 0 {
            times[0].push(time);
            times[1].push(our_time);
        }
    }
    let [before, after] = times.map(median);
    println!("B = {BATCH}, T = {TIME}, {SIZE} features, {SIZE} units, f32, {steps} steps");
    println!("candle_nn::lstm         {before:8.1} ms per training step (median)");
    println!("flashrnn_candle::Lstm   {after:8.1} ms, {:.1} times as fast", before / after);
    println!("losses agree within     {apart:8.1e} relative");
    Ok(())
}
