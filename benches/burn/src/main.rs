//! Compares the speed of the wgpu backend with that of burn's LSTM, on one adapter in one run:
//!
//! ```sh
//! cargo run --release
//! FLASHRNN_WGPU_CPU=1 cargo run --release --no-default-features -- --batch 2 --time 8 --input 16 --units 16  # without a GPU
//! ```
//!
//! burn's LSTM includes the product of its input with W, and ours does not. Therefore that product,
//! computed by burn for all tokens at once, is timed separately and added to ours. Both use the
//! same weights, and nothing is timed unless h and the gradients agree.

use std::error::Error;
use std::time::Instant;

use burn::module::Param;
use burn::nn::{GateController, Linear, LinearConfig, Lstm, LstmConfig};
use burn::tensor::{Device, DeviceKind, Distribution, Tensor};
use clap::Parser;
use flashrnn::wgpu::{Buffer, View, WgpuPlan};
use flashrnn::{Backend, Backward, Forward, Plan, Problem, Saved, Wgpu};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[derive(Parser)]
struct Options {
    /// B
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// T
    #[arg(long, default_value_t = 256)]
    time: usize,
    /// The width of the input
    #[arg(long, default_value_t = 256)]
    input: usize,
    /// The number of units, all in one head
    #[arg(long, default_value_t = 256)]
    units: usize,
    /// The number of warm-up passes, during which burn tunes its kernels
    #[arg(long, default_value_t = 10)]
    warm_up: usize,
    /// The number of timed passes
    #[arg(long, default_value_t = 20)]
    passes: usize,
}

/// The weights of each gate, in flashrnn's order: i, f, z, o.
struct Weights {
    /// `[I, D]`
    w: [Tensor<2>; 4],
    /// `[D_in, D_out]`
    r: [Tensor<2>; 4],
    /// `[D]`
    b: [Tensor<1>; 4],
}

impl Weights {
    fn random(input: usize, units: usize, device: &Device) -> Self {
        let deviation = |width: usize| Distribution::Normal(0.0, (width as f64).powf(-0.5));
        Self {
            w: [(); 4].map(|()| Tensor::random([input, units], deviation(input), device)),
            r: [(); 4].map(|()| Tensor::random([units, units], deviation(units), device)),
            b: [(); 4].map(|()| Tensor::random([units], deviation(1), device)),
        }
    }

    fn burns_lstm(&self, device: &Device) -> Lstm {
        let [input, units] = self.w[0].dims();
        let gate = |i: usize| {
            let linear = |weight: &Tensor<2>, bias: &Tensor<1>| Linear {
                weight: Param::from_tensor(on(weight, device)),
                bias: Some(Param::from_tensor(on(bias, device))),
            };
            GateController {
                input_transform: linear(&self.w[i], &self.b[i]),
                hidden_transform: linear(&self.r[i], &self.b[i].zeros_like()),
            }
        };
        Lstm {
            input_gate: gate(0),
            forget_gate: Some(gate(1)),
            cell_gate: gate(2),
            output_gate: gate(3),
            ..LstmConfig::new(input, units, true).init(device)
        }
    }

    /// Makes the product with W of all gates, without the bias, which flashrnn adds.
    fn product(&self, device: &Device) -> Linear {
        let [input, units] = self.w[0].dims();
        Linear {
            weight: Param::from_tensor(on(&Tensor::cat(self.w.to_vec(), 1), device)),
            ..LinearConfig::new(input, 4 * units).with_bias(false).init(device)
        }
    }

    /// Returns R `[Gr, N, D_out, D_in]` and b `[G, N, D]`.
    fn ours(&self) -> Result<[Vec<f32>; 2]> {
        let r = self.r.clone().map(Tensor::transpose);
        Ok([numbers(Tensor::cat(r.to_vec(), 0))?, numbers(Tensor::cat(self.b.to_vec(), 0))?])
    }
}

/// Copies a tensor to another device.
fn on<const N: usize>(tensor: &Tensor<N>, device: &Device) -> Tensor<N> {
    Tensor::from_data(tensor.to_data(), device)
}

fn numbers<const N: usize>(tensor: Tensor<N>) -> Result<Vec<f32>> {
    Ok(tensor.into_data().try_into_vec()?)
}

/// flashrnn's plan, with the buffers of both passes.
struct Ours {
    wgpu: Wgpu,
    plan: WgpuPlan<f32, f32>,
    weights: flashrnn::Weights<Wgpu, f32>,
    wx: Buffer<f32>,
    h: Buffer<f32>,
    states: Buffer<f32>,
    saved: Saved<Wgpu, f32>,
    d_h: Buffer<f32>,
    d_wx: Buffer<f32>,
    d_r: Buffer<f32>,
    d_b: Buffer<f32>,
}

impl Ours {
    fn new(wgpu: Wgpu, problem: &Problem, [r, b]: &[Vec<f32>; 2], wx: &[f32]) -> Result<Self> {
        let plan = wgpu.plan::<f32, f32, _>(&flashrnn::Lstm, problem)?;
        let units = plan.shapes().tokens() * plan.shapes().units();
        Ok(Self {
            weights: plan.pack(wgpu.upload(r)?.view(), wgpu.upload(b)?.view())?,
            wx: wgpu.upload(wx)?,
            h: wgpu.alloc(units)?,
            states: wgpu.alloc(2 * units)?,
            saved: plan.saved()?,
            d_h: wgpu.upload(&vec![1.0; units])?,
            d_wx: wgpu.alloc(wx.len())?,
            d_r: wgpu.alloc(r.len())?,
            d_b: wgpu.alloc(b.len())?,
            plan,
            wgpu,
        })
    }

    fn forward(&mut self) -> Result<()> {
        let call = Forward::new(&self.weights, self.wx.view());
        self.plan.forward(Forward { h: Some(self.h.view_mut()), ..call })?;
        Ok(self.wgpu.synchronize()?)
    }

    fn both(&mut self) -> Result<()> {
        let call = Forward::new(&self.weights, self.wx.view());
        let (states, saved) = (Some(self.states.view_mut()), Some(self.saved.view_mut()));
        self.plan.forward(Forward { states, saved, ..call })?;
        let (d_h, d_r, d_b) = (self.d_h.view(), self.d_r.view_mut(), self.d_b.view_mut());
        let call = Backward::new(&self.weights, self.states.view(), self.saved.view(), self.d_wx.view_mut());
        self.plan.backward(Backward { d_h: Some(d_h), d_r: Some(d_r), d_b: Some(d_b), ..call })?;
        Ok(self.wgpu.synchronize()?)
    }

    fn download(&self, view: View<'_, f32>) -> Result<Vec<f32>> {
        Ok(self.wgpu.download(view)?)
    }
}

/// Returns the median time in milliseconds of a pass, which must wait for the device.
fn time<R>(options: &Options, mut pass: impl FnMut() -> Result<R>) -> Result<f64> {
    for _ in 0..options.warm_up {
        pass()?;
    }
    let mut times = Vec::new();
    for _ in 0..options.passes.max(1) {
        let start = Instant::now();
        // The result stays alive until the time is taken, so that its computation is not elided.
        let result = pass()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        drop(result);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Fails if the results differ.
fn compare(tensor: &str, ours: &[f32], burns: &[f32]) -> Result<()> {
    let norm = |values: Vec<f64>| values.iter().map(|value| value * value).sum::<f64>().sqrt();
    let burns: Vec<f64> = burns.iter().copied().map(f64::from).collect();
    let differences = ours.iter().zip(&burns).map(|(&a, b)| f64::from(a) - b).collect();
    let error = norm(differences) / norm(burns);
    println!("{tensor}: relative difference {error:.1e}, norm over norm");
    // burn may round the factors of its products to fewer bits, but a wrong result differs more.
    if error < 1e-2 { Ok(()) } else { Err(format!("{tensor} differs").into()) }
}

fn main() -> Result<()> {
    let options = Options::parse();
    let (batch, steps, input, units) = (options.batch, options.time, options.input, options.units);
    #[cfg(feature = "spirv")]
    let plain = Device::vulkan(DeviceKind::DefaultDevice);
    #[cfg(not(feature = "spirv"))]
    let plain = Device::wgpu(DeviceKind::DefaultDevice);
    let graded = plain.clone().autodiff();
    let wgpu = Wgpu::new()?;
    println!("burn: {}", plain.identity().map_or("an unnamed adapter".into(), |found| found.name));
    println!("ours: {}", wgpu.info().device);
    println!("LSTM, f32, B = {batch}, T = {steps}, {input} inputs, 1 head of {units} units\n");

    let given = Weights::random(input, units, &plain);
    let x = Tensor::<3>::random([batch, steps, input], Distribution::Normal(0.0, 1.0), &plain);
    let leaf = on(&x, &graded).require_grad();
    let (lstm, product) = (given.burns_lstm(&plain), given.product(&plain));
    let (graded_lstm, graded_product) = (given.burns_lstm(&graded), given.product(&graded));
    // The loss is the sum of the outputs, so that d_h is 1.
    let both = |forward: &dyn Fn(Tensor<3>) -> Tensor<3>| {
        let out = forward(leaf.clone());
        let gradients = out.clone().sum().backward();
        plain.sync()?;
        Ok((out, gradients))
    };
    let burns_both = || both(&|x| graded_lstm.forward(x, None).0);
    let wx = numbers(product.forward(x.clone()))?;
    let mut ours = Ours::new(wgpu, &Problem::new(batch, steps, 1, units), &given.ours()?, &wx)?;

    ours.forward()?;
    ours.both()?;
    let (h, gradients) = burns_both()?;
    let forget_gate = graded_lstm.forget_gate.as_ref().ok_or("no forget gate")?;
    let gates = [&graded_lstm.input_gate, forget_gate];
    let gates = gates.into_iter().chain([&graded_lstm.cell_gate, &graded_lstm.output_gate]);
    let d_r = gates.map(|gate| gate.hidden_transform.weight.grad(&gradients).map(Tensor::transpose));
    let d_r = d_r.collect::<Option<Vec<_>>>().ok_or("no gradient of R")?;
    compare("h", &ours.download(ours.h.view())?, &numbers(h)?)?;
    compare("the gradient of R", &ours.download(ours.d_r.view())?, &numbers(Tensor::cat(d_r, 0))?)?;

    let forward = [
        time(&options, || {
            let out = lstm.forward(x.clone(), None);
            plain.sync()?;
            Ok(out)
        })?,
        time(&options, || {
            let wx = product.forward(x.clone());
            plain.sync()?;
            Ok(wx)
        })?,
        time(&options, || ours.forward())?,
    ];
    let both = [
        time(&options, burns_both)?,
        time(&options, || both(&|x| graded_product.forward(x)))?,
        time(&options, || ours.both())?,
    ];
    println!("\nMedian milliseconds of {} passes. The product with W is burn's Linear.\n", options.passes);
    println!("| pass | burn | product | recurrence | ours: product + recurrence | burn / ours |");
    println!("|---|---|---|---|---|---|");
    for (pass, [burns, product, recurrence]) in [("forward", forward), ("forward+backward", both)] {
        let sum = product + recurrence;
        let ratio = burns / sum;
        println!("| {pass} | {burns:.3} | {product:.3} | {recurrence:.3} | {sum:.3} | {ratio:.1} |");
    }
    Ok(())
}
