//! Benchmarks of the pointwise stage on one CPU thread in f32. Heads have 16 units, so that matrix
//! products take little of the time.
//!
//! Run them with `cargo bench --bench pointwise`. Throughput is in units (elements of h) per
//! second.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flashrnn::cpu::Level;
use flashrnn::{Backend, Cell, Cpu, Elman, Forward, Gru, Lstm, Plan, Problem, Slstm};

fn cell<C: Cell>(c: &mut Criterion, cell: &C) {
    let (batch, time, heads, head_dim) = (6, 64, 48, 16);
    let mut group = c.benchmark_group(C::NAME);
    group.throughput(Throughput::Elements((batch * time * heads * head_dim) as u64));
    for level in Level::available() {
        let cpu =
            Cpu::with_threads(1).and_then(|cpu| cpu.with_level(level)).expect("a supported level");
        let problem = Problem::new(batch, time, heads, head_dim);
        let plan = cpu.plan(cell, &problem).expect("a valid problem");
        let shapes = plan.shapes();
        let len = |dims: &[usize]| dims.iter().product::<usize>();
        let numbers = |len: usize| {
            (0..len).map(|i| (i * 7919 % 10007) as f32 / 5003.5 - 1.0).collect::<Vec<_>>()
        };
        let wx = numbers(len(&shapes.wx()));
        let weights =
            plan.pack(&numbers(len(&shapes.r())), &numbers(len(&shapes.b()))).expect("weights");
        let mut h = numbers(len(&shapes.h()));
        group.bench_function(level.name(), |bencher| {
            bencher.iter(|| {
                let call = Forward { h: Some(&mut h[..]), ..Forward::new(&weights, &wx) };
                plan.forward(call).expect("forward");
            });
        });
    }
}

fn cells(c: &mut Criterion) {
    cell(c, &Elman);
    cell(c, &Gru);
    cell(c, &Lstm);
    cell(c, &Slstm);
}

criterion_group!(benches, cells);
criterion_main!(benches);
