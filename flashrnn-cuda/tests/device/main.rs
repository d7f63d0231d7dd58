//! Properties of the CUDA backend that the conformance suite does not test: accuracy over long
//! sequences, no memory leaks, the caller's stream and memory, unaligned rows and tensors
//! (`alignment.rs`), heads over the whole GPU (`grid.rs`), also beside other kernels (`beside.rs`),
//! tensors of more than 2³¹ elements (`large.rs`), and reproducible bits (`same_bits.rs`).

mod alignment;
mod beside;
mod grid;
mod large;
mod same_bits;

use std::sync::{Arc, Mutex, MutexGuard};

use flashrnn_core::{
    Backend, Backward, Cell, Element, Elman, Forward, Gru, Lstm, Options, Plan, Problem, Result,
    Save, Slstm, bf16, f16,
};
use flashrnn_cuda::cudarc::driver::{CudaContext, CudaStream};
use flashrnn_cuda::{Cuda, Family, Limits, Waits, testing};
use flashrnn_testsuite::random::Random;
use flashrnn_testsuite::{Case, Results, Tensors, errors, run};

/// Opens a GPU for one test at a time, because some tests measure its free memory and some need
/// most of it.
fn cuda() -> Option<(Cuda, MutexGuard<'static, ()>)> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = flashrnn_gpu::lock(&ALONE);
    Some((testing::cuda()?, alone))
}

#[test]
fn f32_keeps_its_accuracy_over_256_steps() -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    // 84 roundoffs, relative to the norm: enough for f32 sums in any order, too little for TF32.
    const ALLOWED: f64 = 5e-6;
    fn check<C: Cell>(cuda: &Cuda, cell: &C, failed: &mut Vec<String>) -> Result<()> {
        for (heads, head_dim) in [(2, 64), (1, 256)] {
            let problem = Problem::new(4, 256, heads, head_dim);
            let tensors = Tensors { d_last: true, ..Tensors::PLAIN };
            let mut case = Case::random::<C, f32, f32>(cell, &problem, tensors, 1)?;
            // The loss depends on h and on the last state.
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

/// Runs every kernel on a small problem, for compute-sanitizer. If `FLASHRNN_BLOCK_BARRIERS` is
/// set, block barriers, which racecheck understands, accompany the mbarriers.
#[test]
fn every_kernel_on_a_small_problem() -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    let block = std::env::var_os("FLASHRNN_BLOCK_BARRIERS").is_some();
    let cuda = cuda.with_waits(if block { Waits::Block } else { Waits::Plain });
    fn check<C: Cell, T: Element, W: Element>(
        cuda: &Cuda,
        cell: &C,
        failed: &mut Vec<String>,
    ) -> Result<()> {
        // Bounds that detect mistakes; the conformance suite has tight ones.
        let allowed = if size_of::<T>() == 4 { 2e-5 } else { 5e-2 };
        // A block with unused rows, rows that start in the middle of a word, and a cluster of 3
        // blocks whose last one has unused units, with saved and with recomputed gates.
        for (head_dim, save, tensors) in [
            (40, Save::Gates, Tensors::PLAIN),
            (33, Save::Gates, Tensors { d_states: false, ..Tensors::ALL }),
            (72, Save::Gates, Tensors { d_states: false, ..Tensors::ALL }),
            (72, Save::Recompute, Tensors::PLAIN),
        ] {
            // sLSTM's last state is discontinuous.
            let tensors = Tensors { d_last: tensors.d_last && C::NAME != "slstm", ..tensors };
            let clip = tensors.lengths.then_some(0.4);
            let problem = Problem::new(3, 6, 2, head_dim).with(Options {
                save,
                recurrent_grad_clip: clip,
                ..Options::default()
            });
            let case = Case::random::<C, T, W>(cell, &problem, tensors, 1)?;
            let grid = |cluster| Limits { cluster: 0, grid_cluster: Some(cluster), ..Limits::NONE };
            for (kernels, cuda) in [
                ("fused", cuda.clone()),
                ("per-step", cuda.clone().with_family(Family::Alternating)),
                ("grid", cuda.clone().with_limits(grid(1))),
                ("grid in clusters", cuda.clone().with_limits(grid(2))),
            ] {
                let got = run::<_, C, T, W>(&cuda, cell, &case)?;
                for (tensor, error) in errors(&got, &Results::reference(cell, &case)?) {
                    if error.is_nan() || error > allowed {
                        let name = C::NAME;
                        failed.push(format!(
                            "{kernels} {name} {} D {head_dim} {tensor} {error:.1e}",
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
    // The conformance suite's bound for bf16. The suite's own problems have at most 384 units per
    // head, and most of them at most 129.
    const ALLOWED: f64 = 1.5e-2;
    fn check<C: Cell>(cuda: &Cuda, cell: &C, failed: &mut Vec<String>) -> Result<()> {
        for (batch, head_dim) in [(5, 200), (5, 256), (3, 480), (5, 512)] {
            for tensors in
                [Tensors::PLAIN, Tensors { d_states: false, d_last: true, ..Tensors::ALL }]
            {
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

/// Returns the free and the total memory of the GPU in bytes.
fn memory(cuda: &Cuda) -> (usize, usize) {
    cuda.stream().context().mem_get_info().unwrap()
}

#[test]
fn plans_leak_no_memory() -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    fn some_plans<T: Element>(cuda: &Cuda, plans: usize, seed: u64) -> Result<()> {
        let mut random = Random::new(seed);
        for i in 0..plans {
            let problem = Problem::new(1 + random.below(64), 1 + random.below(2000), 2, 40);
            let plan = cuda.plan::<T, T, _>(&Lstm, &problem)?;
            if i % 100 == 0 {
                let shapes = plan.shapes();
                let size = |shape: &[usize]| shape.iter().product::<usize>();
                let (r, b) =
                    (cuda.alloc::<T>(size(&shapes.r()))?, cuda.alloc::<T>(size(&shapes.b()))?);
                let wx = cuda.alloc::<T>(size(&shapes.wx()))?;
                let mut h = cuda.alloc::<T>(size(&shapes.h()))?;
                let weights = plan.pack(r.view(), b.view())?;
                plan.forward(Forward {
                    h: Some(h.view_mut()),
                    ..Forward::new(&weights, wx.view())
                })?;
            }
        }
        cuda.synchronize()
    }
    // The first round fills the caches of kernels and graphs and the pool; the second reuses them.
    let round = || -> Result<(u64, usize)> {
        some_plans::<f32>(&cuda, 5000, 1)?;
        some_plans::<bf16>(&cuda, 5000, 2)?;
        Ok((cuda.memory()?.used, memory(&cuda).0))
    };
    let ((used, free), (used_after, free_after)) = (round()?, round()?);
    println!(
        "used {used} B, then {used_after} B; free {} MiB, then {} MiB",
        free >> 20,
        free_after >> 20
    );
    assert!(used_after <= used, "buffers were leaked");
    // The driver allocates in pieces of 2 MiB, and may need a few itself.
    assert!(free <= free_after + (8 << 20), "memory of the device was leaked");
    Ok(())
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

    // With buffers of the backend.
    let want = {
        let plan = found.plan::<f32, f32, _>(&Lstm, &problem)?;
        let (wx, r, b) = (found.upload(&wx)?, found.upload(&r)?, found.upload(&b)?);
        let (weights, d_h) = (plan.pack(r.view(), b.view())?, found.upload(&d_h)?);
        let mut states = found.alloc::<f32>(size(&shapes.states()))?;
        let mut saved = plan.saved()?;
        plan.forward(Forward {
            states: Some(states.view_mut()),
            saved: Some(saved.view_mut()),
            ..Forward::new(&weights, wx.view())
        })?;
        let mut d_wx = found.alloc::<f32>(wx.len())?;
        plan.backward(Backward {
            d_h: Some(d_h.view()),
            ..Backward::new(&weights, states.view(), saved.view(), d_wx.view_mut())
        })?;
        (found.download(states.view())?, found.download(d_wx.view())?)
    };

    // With slices of cudarc, on the backend's stream and on another one of the same context.
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
            let (borrowed_r, borrowed_b, borrowed_wx) =
                (cuda.borrow(&r)?, cuda.borrow(&b)?, cuda.borrow(&wx)?);
            let weights = plan.pack(borrowed_r.view(), borrowed_b.view())?;
            let mut borrowed_states = cuda.borrow_mut(&mut states)?;
            plan.forward(Forward {
                states: Some(borrowed_states.view_mut()),
                saved: Some(saved.view_mut()),
                ..Forward::new(&weights, borrowed_wx.view())
            })?;
            drop(borrowed_states);
            let (borrowed_states, borrowed_d_h) = (cuda.borrow(&states)?, cuda.borrow(&d_h)?);
            let mut borrowed_d_wx = cuda.borrow_mut(&mut d_wx)?;
            plan.backward(Backward {
                d_h: Some(borrowed_d_h.view()),
                ..Backward::new(
                    &weights,
                    borrowed_states.view(),
                    saved.view(),
                    borrowed_d_wx.view_mut(),
                )
            })?;
        }
        // The slice's stream waits for the backend's.
        assert_eq!(owner.clone_dtoh(&states).unwrap(), want.0);
        assert_eq!(owner.clone_dtoh(&d_wx).unwrap(), want.1);
        cuda.synchronize()?;
        assert_eq!(cuda.memory()?.used, used, "a call kept memory");
    }
    Ok(())
}
