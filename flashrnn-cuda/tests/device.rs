//! What the conformance suite does not ask for and a GPU must show: accuracy over long sequences, tensors of more than 2³¹
//! elements, no memory left behind, the same bits again, several streams at once, the caller's own stream and memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use flashrnn_core::{
    Backend, Backward, Cell, Element, Elman, Forward, Gru, Lstm, Plan, Problem, Result, Save, Slstm, bf16,
    f16,
};
use flashrnn_cuda::cudarc::driver::{CudaContext, CudaStream};
use flashrnn_cuda::{Buffer, Cuda, Family, Waits, testing};
use flashrnn_testsuite::random::Random;
use flashrnn_testsuite::{Case, Results, Tensors, errors, run};

/// A device, for one test at a time: some look at the memory that is free, and some need most of it.
fn cuda() -> Option<(Cuda, MutexGuard<'static, ()>)> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    Some((testing::cuda()?, alone))
}

#[test]
fn f32_keeps_its_accuracy_over_256_steps() -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    // 84 roundoffs, norm over norm: f32 that means f32, with sums in any order.
    const ALLOWED: f64 = 5e-6;
    fn check<C: Cell>(cuda: &Cuda, cell: &C, failed: &mut Vec<String>) -> Result<()> {
        for (heads, head_dim) in [(2, 64), (1, 256)] {
            let problem = Problem::new(4, 256, heads, head_dim);
            let tensors = Tensors { d_last: true, ..Tensors::PLAIN };
            let mut case = Case::random::<C, f32, f32>(cell, &problem, tensors, 1)?;
            // The loss is one on h and on the last state.
            let h = problem.shapes::<C>()?.h().iter().product();
            if let Some(d_states) = &mut case.d.d_states {
                d_states[h..].fill(0.0);
            }
            let got = run::<_, C, f32, f32>(cuda, cell, &case)?;
            for (tensor, error) in errors(&got, &Results::reference(cell, &case)?) {
                println!("{:<6} D {head_dim:>3} {tensor:<7} {error:.1e}", C::NAME);
                if error > ALLOWED {
                    failed.push(format!("{} D {head_dim} {tensor} {error:.1e}", C::NAME));
                }
            }
        }
        Ok(())
    }
    let mut failed = Vec::new();
    check(&cuda, &Elman, &mut failed)?;
    check(&cuda, &Gru, &mut failed)?;
    check(&cuda, &Lstm, &mut failed)?;
    check(&cuda, &Slstm, &mut failed)?;
    assert!(failed.is_empty(), "above {ALLOWED:e}: {failed:?}");
    Ok(())
}

/// One small problem for every kernel: what compute-sanitizer looks at, racecheck with barriers that it knows.
#[test]
fn every_kernel_on_a_small_problem() -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    let block = std::env::var_os("FLASHRNN_BLOCK_BARRIERS").is_some();
    let cuda = cuda.with_waits(if block { Waits::Block } else { Waits::Plain });
    fn check<C: Cell, T: Element, W: Element>(cuda: &Cuda, cell: &C, failed: &mut Vec<String>) -> Result<()> {
        // Bounds for mistakes; the conformance suite has those for rounding.
        let allowed = if size_of::<T>() == 4 { 2e-5 } else { 5e-2 };
        // A block whose rows are not all used, and a cluster of 3 whose last units are none; the last save no gates.
        for (head_dim, save, tensors) in [
            (40, Save::Gates, Tensors::PLAIN),
            (72, Save::Gates, Tensors { d_states: false, ..Tensors::ALL }),
            (72, Save::Recompute, Tensors::PLAIN),
        ] {
            // sLSTM's last state has discontinuities.
            let tensors = Tensors { d_last: tensors.d_last && C::NAME != "slstm", ..tensors };
            let clip = tensors.lengths.then_some(0.4);
            let problem = Problem { save, recurrent_grad_clip: clip, ..Problem::new(3, 6, 2, head_dim) };
            let case = Case::random::<C, T, W>(cell, &problem, tensors, 1)?;
            for family in [Family::Auto, Family::Alternating] {
                let got = run::<_, C, T, W>(&cuda.clone().with_family(family), cell, &case)?;
                for (tensor, error) in errors(&got, &Results::reference(cell, &case)?) {
                    if error.is_nan() || error > allowed {
                        let name = C::NAME;
                        failed.push(format!(
                            "{family:?} {name} {} D {head_dim} {tensor} {error:.1e}",
                            T::DTYPE
                        ));
                    }
                }
            }
        }
        Ok(())
    }
    fn types<C: Cell>(cuda: &Cuda, cell: &C, failed: &mut Vec<String>) -> Result<()> {
        check::<C, f32, f32>(cuda, cell, failed)?;
        check::<C, f16, f32>(cuda, cell, failed)?;
        check::<C, bf16, bf16>(cuda, cell, failed)
    }
    let mut failed = Vec::new();
    types(&cuda, &Elman, &mut failed)?;
    types(&cuda, &Gru, &mut failed)?;
    types(&cuda, &Lstm, &mut failed)?;
    types(&cuda, &Slstm, &mut failed)?;
    assert!(failed.is_empty(), "{failed:?}");
    Ok(())
}

#[test]
fn wide_heads_in_clusters_are_as_exact_as_narrow_ones() -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    // The conformance suite's bound for bf16; its problems have heads of up to 129 units.
    const ALLOWED: f64 = 1.5e-2;
    fn check<C: Cell>(cuda: &Cuda, cell: &C, failed: &mut Vec<String>) -> Result<()> {
        for (batch, head_dim) in [(5, 200), (5, 256), (3, 480), (5, 512)] {
            for tensors in [Tensors::PLAIN, Tensors { d_states: false, d_last: true, ..Tensors::ALL }] {
                let problem = Problem::new(batch, 40, 2, head_dim);
                let case = Case::random::<C, bf16, bf16>(cell, &problem, tensors, 1)?;
                let got = run::<_, C, bf16, bf16>(cuda, cell, &case)?;
                for (tensor, error) in errors(&got, &Results::reference(cell, &case)?) {
                    println!("{:<6} D {head_dim:>3} {tensor:<7} {error:.1e}", C::NAME);
                    if error.is_nan() || error > ALLOWED {
                        failed.push(format!("{} D {head_dim} {tensor} {error:.1e}", C::NAME));
                    }
                }
            }
        }
        Ok(())
    }
    let mut failed = Vec::new();
    check(&cuda, &Elman, &mut failed)?;
    check(&cuda, &Gru, &mut failed)?;
    check(&cuda, &Lstm, &mut failed)?;
    assert!(failed.is_empty(), "above {ALLOWED:e}: {failed:?}");
    Ok(())
}

/// 2³¹ elements and some more, `[B, T, N, D]` = `[4160, 8192, 1, 64]`.
const LARGE: [usize; 4] = [4160, 8192, 1, 64];

/// Rows of [`LARGE`]: the first, both sides of 2³¹ elements, the last. As many as a tile of the large batch has, which makes a row's
/// sums the same.
const ROWS: [usize; 16] =
    [0, 1, 2047, 2048, 4000, 4094, 4095, 4096, 4097, 4098, 4099, 4100, 4128, 4157, 4158, 4159];

#[test]
fn more_than_2_to_the_31_elements_in_one_kernel() -> Result<()> {
    large::<f16>(Family::Fused)
}

#[test]
fn more_than_2_to_the_31_elements_by_a_kernel_a_step() -> Result<()> {
    large::<f16>(Family::Alternating)
}

#[test]
fn more_than_2_to_the_31_elements_of_f32() -> Result<()> {
    large::<f32>(Family::Auto)
}

/// Elman forward and backward; the rows named above must have the bits that a small problem of these rows has.
fn large<T: Element + PartialEq>(family: Family) -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    let cuda = cuda.with_family(family);
    let [batch, time, heads, head_dim] = LARGE;
    let (row, elements) = (time * head_dim, batch * time * head_dim);
    assert!(elements > 1 << 31);
    // wx, h in states, gates, d_h, d_wx, and half as much again for what a pass keeps while it runs.
    let bytes = 15 * elements / 2 * size_of::<T>();
    let (free, _) = memory(&cuda);
    if free < bytes {
        println!("skipped: {} GB of device memory are free, {} needed", free >> 30, bytes >> 30);
        return Ok(());
    }
    let (wx, d_h) = (pattern::<T>(elements, 1.0), pattern::<T>(elements, 0.125));
    let mut random = Random::new(3);
    // f32 weights, so that d_b is: a sum over 34 million tokens is beyond f16.
    let mut values = |n: usize, deviation| -> Vec<f32> {
        random.normals(n, deviation).into_iter().map(|v| v as f32).collect()
    };
    let (r, b) = (values(head_dim * head_dim, 0.125), values(head_dim, 1.0));

    let part = |all: &[T]| ROWS.map(|i| &all[i * row..][..row]).concat();
    let small = Problem::new(ROWS.len(), time, heads, head_dim);
    let small = both_passes(&cuda, &small, [&part(&wx), &part(&d_h)], [&r, &b])?;
    let small_h = cuda.download(small.h.view())?;
    let small_d_wx = cuda.download(small.d_wx.view())?;
    drop(small);

    let large = Problem::new(batch, time, heads, head_dim);
    let large = both_passes(&cuda, &large, [&wx, &d_h], [&r, &b])?;
    for (i, at) in ROWS.into_iter().enumerate() {
        for (name, got, want) in [("h", &large.h, &small_h), ("d_wx", &large.d_wx, &small_d_wx)] {
            let got = cuda.download(got.view().slice(at * row..(at + 1) * row)?)?;
            let differ = got.iter().zip(&want[i * row..][..row]).filter(|(got, want)| got != want).count();
            assert_eq!(
                differ,
                0,
                "{}: {name} of row {at} has {differ} of {row} elements of its own",
                T::DTYPE
            );
        }
    }

    // d_b is the sum of d_wx over all tokens, which nothing else here looks at.
    let (d_wx, d_b) = (cuda.download(large.d_wx.view())?, cuda.download(large.d_b.view())?);
    let mut sums = vec![0.0; head_dim];
    for token in d_wx.chunks_exact(head_dim) {
        sums.iter_mut().zip(token).for_each(|(sum, d)| *sum += d.to_f64());
    }
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let off =
        norm(&mut d_b.iter().zip(&sums).map(|(d, sum)| d.to_f64() - sum)) / norm(&mut sums.iter().copied());
    println!("{}: d_b off by {off:.1e} from the sum of d_wx", T::DTYPE);
    // The terms nearly cancel in a sum of 34 million, which f32 adds up in at most 64 parts.
    assert!(off < 2e-3, "{off}");
    Ok(())
}

struct Passes<T> {
    h: Buffer<T>,
    d_wx: Buffer<T>,
    d_b: Buffer<f32>,
}

fn both_passes<T: Element>(
    cuda: &Cuda,
    problem: &Problem,
    [wx, d_h]: [&[T]; 2],
    [r, b]: [&[f32]; 2],
) -> Result<Passes<T>> {
    let plan = cuda.plan::<T, f32, _>(&Elman, problem)?;
    let (r, b, wx) = (cuda.upload(r)?, cuda.upload(b)?, cuda.upload(wx)?);
    let weights = plan.pack(r.view(), b.view())?;
    let mut h = cuda.alloc::<T>(wx.len())?;
    let mut saved = plan.saved()?;
    plan.forward(Forward {
        states: Some(h.view_mut()),
        saved: Some(&mut saved),
        ..Forward::new(wx.view(), &weights)
    })?;
    drop(wx);
    let d_h = cuda.upload(d_h)?;
    let (mut d_wx, mut d_r) = (cuda.alloc::<T>(h.len())?, cuda.alloc::<f32>(r.len())?);
    let mut d_b = cuda.alloc::<f32>(b.len())?;
    plan.backward(Backward {
        d_h: Some(d_h.view()),
        d_r: Some(d_r.view_mut()),
        d_b: Some(d_b.view_mut()),
        ..Backward::new(&weights, h.view(), &saved, d_wx.view_mut())
    })?;
    cuda.synchronize()?;
    Ok(Passes { h, d_wx, d_b })
}

/// `len` normal numbers, which repeat after a prime number of them, so that no two rows are the same.
fn pattern<T: Element>(len: usize, deviation: f64) -> Vec<T> {
    let base: Vec<T> = Random::new(1).normals(1_000_003, deviation).into_iter().map(T::from_f64).collect();
    let mut all = Vec::with_capacity(len);
    while all.len() < len {
        all.extend_from_slice(&base[..base.len().min(len - all.len())]);
    }
    all
}

/// Free and total bytes on the device.
fn memory(cuda: &Cuda) -> (usize, usize) {
    cuda.stream().context().mem_get_info().unwrap()
}

#[test]
fn plans_leave_no_memory_behind() -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    fn some_plans<T: Element>(cuda: &Cuda, plans: usize, seed: u64) -> Result<()> {
        let mut random = Random::new(seed);
        for i in 0..plans {
            let problem = Problem::new(1 + random.below(64), 1 + random.below(2000), 2, 40);
            let plan = cuda.plan::<T, T, _>(&Lstm, &problem)?;
            if i % 100 == 0 {
                let shapes = plan.shapes();
                let size = |shape: &[usize]| shape.iter().product::<usize>();
                let (r, b) = (cuda.alloc::<T>(size(&shapes.r()))?, cuda.alloc::<T>(size(&shapes.b()))?);
                let wx = cuda.alloc::<T>(size(&shapes.wx()))?;
                let mut h = cuda.alloc::<T>(size(&shapes.h()))?;
                let weights = plan.pack(r.view(), b.view())?;
                plan.forward(Forward { h: Some(h.view_mut()), ..Forward::new(wx.view(), &weights) })?;
            }
        }
        cuda.synchronize()
    }
    // The first round makes what is kept: kernels, graphs, the pool. The second asks for the same again.
    let round = || -> Result<(u64, usize)> {
        some_plans::<f32>(&cuda, 5000, 1)?;
        some_plans::<bf16>(&cuda, 5000, 2)?;
        Ok((cuda.memory()?.used, memory(&cuda).0))
    };
    let ((used, free), (used_after, free_after)) = (round()?, round()?);
    println!("used {used} B, then {used_after} B; free {} MiB, then {} MiB", free >> 20, free_after >> 20);
    assert!(used_after <= used, "buffers were left behind");
    // The driver takes memory in pieces of 2 MiB, a few of which its own affairs may need.
    assert!(free <= free_after + (8 << 20), "memory of the device was left behind");
    Ok(())
}

/// The results of a few cells and element types.
fn results(cuda: &Cuda) -> Result<Vec<Results>> {
    let problem = Problem::new(9, 70, 3, 80);
    let lstm = Case::random::<Lstm, bf16, bf16>(&Lstm, &problem, Tensors::ALL, 1)?;
    let gru = Case::random::<Gru, f32, f32>(&Gru, &problem, Tensors::ALL, 2)?;
    let slstm = Case::random::<Slstm, f16, f32>(&Slstm, &problem, Tensors::ALL, 3)?;
    Ok(vec![
        run::<_, _, bf16, bf16>(cuda, &Lstm, &lstm)?,
        run::<_, _, f32, f32>(cuda, &Gru, &gru)?,
        run::<_, _, f16, f32>(cuda, &Slstm, &slstm)?,
    ])
}

#[test]
fn the_same_call_gives_the_same_bits_again() -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    let first = results(&cuda)?;
    for again in 1..=10 {
        assert!(results(&cuda)? == first, "run {again} differs from the first");
    }
    assert!(results(&Cuda::new()?)? == first, "another stream gives other bits");
    Ok(())
}

#[test]
fn several_streams_at_once_give_the_bits_of_one_alone() -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    let alone = results(&cuda)?;
    thread::scope(|scope| {
        let streams = [Cuda::new()?, Cuda::new()?];
        let threads = streams.map(|cuda| {
            let alone = &alone;
            scope.spawn(move || -> Result<()> {
                for call in 0..10 {
                    assert!(results(&cuda)? == *alone, "call {call} differs");
                }
                Ok(())
            })
        });
        threads.into_iter().try_for_each(|thread| thread.join().unwrap())
    })
}

/// Of heads in a block, in clusters of 3 and of 16, and f32: the fused kernels alone.
fn fused_results(cuda: &Cuda, seed: u64) -> Result<Vec<Results>> {
    let lstm = |head_dim| {
        Case::random::<Lstm, bf16, bf16>(&Lstm, &Problem::new(5, 25, 2, head_dim), Tensors::ALL, seed)
    };
    let gru = Case::random::<Gru, f32, f32>(&Gru, &Problem::new(3, 25, 2, 60), Tensors::PLAIN, seed)?;
    let slstm = Case::random::<Slstm, f16, f16>(&Slstm, &Problem::new(9, 25, 3, 80), Tensors::PLAIN, seed)?;
    let mut results = Vec::new();
    for head_dim in [64, 96, 512] {
        results.push(run::<_, _, bf16, bf16>(cuda, &Lstm, &lstm(head_dim)?)?);
    }
    results.push(run::<_, _, f32, f32>(cuda, &Gru, &gru)?);
    results.push(run::<_, _, f16, f16>(cuda, &Slstm, &slstm)?);
    Ok(results)
}

#[test]
fn warps_that_wait_at_random_give_the_same_bits() -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    let cuda = cuda.with_family(Family::Fused);
    for seed in 1..=3 {
        let want = fused_results(&cuda, seed)?;
        for again in 1..=5 {
            assert!(
                fused_results(&cuda.clone().with_waits(Waits::Delayed), seed)? == want,
                "run {again} differs"
            );
        }
    }
    Ok(())
}

/// h and d_wx of 10,000 forward and backward passes, on each of two streams at once.
#[test]
fn ten_thousand_launches_on_two_streams_give_the_same_bits() -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    fn passes(cuda: &Cuda, head_dim: usize, launches: usize) -> Result<()> {
        let problem = Problem::new(5, 12, 2, head_dim);
        let shapes = problem.shapes::<Lstm>()?;
        let size = |shape: &[usize]| shape.iter().product::<usize>();
        let mut random = Random::new(1);
        let mut values = |shape: &[usize], deviation| -> Vec<bf16> {
            random.normals(size(shape), deviation).into_iter().map(bf16::from_f64).collect()
        };
        let wx = cuda.upload(&values(&shapes.wx(), 1.0))?;
        let (r, b) = (cuda.upload(&values(&shapes.r(), 0.1))?, cuda.upload(&values(&shapes.b(), 1.0))?);
        let d_h = cuda.upload(&values(&shapes.h(), 1.0))?;
        let plan = cuda.plan::<bf16, bf16, _>(&Lstm, &problem)?;
        let weights = plan.pack(r.view(), b.view())?;
        let mut states = cuda.alloc::<bf16>(size(&shapes.states()))?;
        let (mut d_wx, mut saved) = (cuda.alloc::<bf16>(wx.len())?, plan.saved()?);
        let mut first = None;
        for launch in 0..launches {
            plan.forward(Forward {
                states: Some(states.view_mut()),
                saved: Some(&mut saved),
                ..Forward::new(wx.view(), &weights)
            })?;
            plan.backward(Backward {
                d_h: Some(d_h.view()),
                ..Backward::new(&weights, states.view(), &saved, d_wx.view_mut())
            })?;
            let got = (cuda.download(states.view())?, cuda.download(d_wx.view())?);
            assert!(
                *first.get_or_insert_with(|| got.clone()) == got,
                "D {head_dim}: launch {launch} differs"
            );
        }
        Ok(())
    }
    thread::scope(|scope| {
        let streams = [(Cuda::new()?, 64), (Cuda::new()?, 96)];
        let threads = streams.map(|(cuda, head_dim)| {
            scope.spawn(move || passes(&cuda.with_family(Family::Fused), head_dim, 10_000))
        });
        threads.into_iter().try_for_each(|thread| thread.join().unwrap())?;
        drop(cuda);
        Ok(())
    })
}

#[test]
fn one_backend_serves_several_threads() -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    let alone = results(&cuda)?;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(|| results(&cuda))).collect();
        for thread in threads {
            assert!(thread.join().unwrap()? == alone, "a thread's results differ");
        }
        Ok(())
    })
}

#[test]
fn the_callers_stream_and_memory_are_used_as_they_are() -> Result<()> {
    let Some((found, _alone)) = cuda() else { return Ok(()) };
    let problem = Problem::new(5, 40, 2, 48);
    let shapes = problem.shapes::<Lstm>()?;
    let size = |shape: &[usize]| shape.iter().product::<usize>();
    let mut random = Random::new(1);
    let mut values = |shape: &[usize], deviation| -> Vec<f32> {
        random.normals(size(shape), deviation).into_iter().map(|v| v as f32).collect()
    };
    let (wx, r) = (values(&shapes.wx(), 1.0), values(&shapes.r(), 0.14));
    let (b, d_h) = (values(&shapes.b(), 1.0), values(&shapes.h(), 1.0));

    // By buffers of the backend's own.
    let want = {
        let plan = found.plan::<f32, f32, _>(&Lstm, &problem)?;
        let (wx, r, b) = (found.upload(&wx)?, found.upload(&r)?, found.upload(&b)?);
        let (weights, d_h) = (plan.pack(r.view(), b.view())?, found.upload(&d_h)?);
        let mut states = found.alloc::<f32>(size(&shapes.states()))?;
        let mut saved = plan.saved()?;
        plan.forward(Forward {
            states: Some(states.view_mut()),
            saved: Some(&mut saved),
            ..Forward::new(wx.view(), &weights)
        })?;
        let mut d_wx = found.alloc::<f32>(wx.len())?;
        plan.backward(Backward {
            d_h: Some(d_h.view()),
            ..Backward::new(&weights, states.view(), &saved, d_wx.view_mut())
        })?;
        (found.download(states.view())?, found.download(d_wx.view())?)
    };

    // By cudarc's slices: on the stream the backend works on, and on another one of the same context.
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let other: Arc<CudaStream> = context.new_stream().unwrap();
    let cuda = Cuda::on_stream(stream.clone())?;
    assert!(Arc::ptr_eq(cuda.stream(), &stream));
    let plan = cuda.plan::<f32, f32, _>(&Lstm, &problem)?;
    for owner in [&stream, &other] {
        let (wx, r) = (owner.clone_htod(&wx).unwrap(), owner.clone_htod(&r).unwrap());
        let (b, d_h) = (owner.clone_htod(&b).unwrap(), owner.clone_htod(&d_h).unwrap());
        let mut states = owner.alloc_zeros::<f32>(size(&shapes.states())).unwrap();
        let mut d_wx = owner.alloc_zeros::<f32>(size(&shapes.wx())).unwrap();
        let mut saved = plan.saved()?;
        let used = cuda.memory()?.used;
        {
            let (lent_r, lent_b, lent_wx) = (cuda.borrow(&r)?, cuda.borrow(&b)?, cuda.borrow(&wx)?);
            let weights = plan.pack(lent_r.view(), lent_b.view())?;
            let mut lent_states = cuda.borrow_mut(&mut states)?;
            plan.forward(Forward {
                states: Some(lent_states.view_mut()),
                saved: Some(&mut saved),
                ..Forward::new(lent_wx.view(), &weights)
            })?;
            drop(lent_states);
            let (lent_states, lent_d_h) = (cuda.borrow(&states)?, cuda.borrow(&d_h)?);
            let mut lent_d_wx = cuda.borrow_mut(&mut d_wx)?;
            plan.backward(Backward {
                d_h: Some(lent_d_h.view()),
                ..Backward::new(&weights, lent_states.view(), &saved, lent_d_wx.view_mut())
            })?;
        }
        // The owner's stream waits for what was enqueued on the backend's.
        assert_eq!(owner.clone_dtoh(&states).unwrap(), want.0);
        assert_eq!(owner.clone_dtoh(&d_wx).unwrap(), want.1);
        cuda.synchronize()?;
        assert_eq!(cuda.memory()?.used, used, "a call kept memory of its own");
    }
    Ok(())
}
