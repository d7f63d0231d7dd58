//! Benchmarks of the operator on the CPU in f32, over cells, shapes and passes, and of candle-nn's
//! LSTM and GRU on the same shapes.
//!
//! Run them with `cargo bench --bench operator`, optionally with a filter after `--`. Shapes are
//! named `BxT, NxD`.

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::rnn::{GRUConfig, LSTMConfig, RNN, gru, lstm};
use candle_nn::{VarBuilder, VarMap};
use criterion::{Criterion, criterion_group, criterion_main};
use flashrnn::{Backend, Backward, Cell, Cpu, Elman, Forward, Gru, Lstm, Plan, Problem, Slstm};

/// B, T, N, D
const SHAPES: [[usize; 4]; 4] =
    [[1, 256, 1, 512], [16, 256, 1, 128], [16, 256, 12, 64], [16, 256, 3, 256]];

/// Returns pseudorandom numbers between -`scale` and `scale`.
fn numbers(len: usize, scale: f32) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 % 10007) as f32 / 5003.5 - 1.0) * scale).collect()
}

fn name([batch, time, heads, head_dim]: [usize; 4]) -> String {
    format!("{batch}x{time}, {heads}x{head_dim}")
}

fn ours<C: Cell>(c: &mut Criterion, cell: &C) {
    let mut group = c.benchmark_group(C::NAME);
    group.sample_size(10);
    for shape @ [batch, time, heads, head_dim] in SHAPES {
        let problem = Problem::new(batch, time, heads, head_dim);
        let plan = Cpu::new().plan(cell, &problem).expect("a valid problem");
        let shapes = plan.shapes();
        let len = |dims: &[usize]| dims.iter().product::<usize>();
        let wx = numbers(len(&shapes.wx()), 1.0);
        let (r, b) = (
            numbers(len(&shapes.r()), (head_dim as f32).powf(-0.5)),
            numbers(len(&shapes.b()), 1.0),
        );
        let weights = plan.pack(&r, &b).expect("weights of the right size");
        let mut h = numbers(len(&shapes.h()), 0.0);
        let mut states = numbers(len(&shapes.states()), 0.0);
        let mut saved = plan.saved().expect("memory");
        let d_h = numbers(h.len(), 1.0);
        let (mut d_wx, mut d_r, mut d_b) = (wx.clone(), r.clone(), b.clone());
        group.bench_function(format!("forward, {}", name(shape)), |bencher| {
            bencher.iter(|| {
                let call = Forward { h: Some(&mut h[..]), ..Forward::new(&weights, &wx) };
                plan.forward(call).expect("forward");
            });
        });
        group.bench_function(format!("forward and backward, {}", name(shape)), |bencher| {
            bencher.iter(|| {
                plan.forward(Forward {
                    states: Some(&mut states),
                    saved: Some(saved.view_mut()),
                    ..Forward::new(&weights, &wx)
                })
                .expect("forward");
                plan.backward(Backward {
                    d_h: Some(&d_h),
                    d_r: Some(&mut d_r),
                    d_b: Some(&mut d_b),
                    ..Backward::new(&weights, &states, saved.view(), &mut d_wx)
                })
                .expect("backward");
            });
        });
    }
}

fn cells(c: &mut Criterion) {
    ours(c, &Elman);
    ours(c, &Gru);
    ours(c, &Lstm);
    ours(c, &Slstm);
}

/// Benchmarks candle-nn, which has one head and applies W itself. The input has only 8 features, so
/// that W costs little.
fn candle(c: &mut Criterion) {
    let mut group = c.benchmark_group("candle-nn");
    group.sample_size(10);
    for shape @ [batch, time, heads, head_dim] in SHAPES {
        if heads > 1 {
            continue;
        }
        let vars = VarMap::new();
        let builder = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
        let x = Var::randn(0f32, 1f32, (batch, time, 8), &Device::Cpu).expect("input");
        let lstm = lstm(8, head_dim, LSTMConfig::default(), builder.pp("lstm")).expect("lstm");
        let gru = gru(8, head_dim, GRUConfig::default(), builder.pp("gru")).expect("gru");
        let run_lstm =
            |x: &Tensor| lstm.states_to_tensor(&lstm.seq(x).expect("forward")).expect("states");
        let run_gru =
            |x: &Tensor| gru.states_to_tensor(&gru.seq(x).expect("forward")).expect("states");
        let run: [&dyn Fn(&Tensor) -> Tensor; 2] = [&run_lstm, &run_gru];
        for (cell, run) in ["lstm", "gru"].into_iter().zip(run) {
            let constant = x.as_tensor().detach();
            group.bench_function(format!("{cell} forward, {}", name(shape)), |bencher| {
                bencher.iter(|| run(&constant));
            });
            group.bench_function(
                format!("{cell} forward and backward, {}", name(shape)),
                |bencher| {
                    bencher.iter(|| {
                        run(&x).sum_all().and_then(|sum| sum.backward()).expect("backward")
                    });
                },
            );
        }
    }
}

criterion_group!(benches, cells, candle);
criterion_main!(benches);
