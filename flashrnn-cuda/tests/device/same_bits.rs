//! Reproducible bits: in another call, on another stream, on several streams at once, and however
//! warps are scheduled.

use std::thread;

use flashrnn_core::{
    Backend, Backward, Forward, Gru, Lstm, Plan, Problem, Result, Slstm, bf16, f16,
};
use flashrnn_cuda::{Cuda, Family, Waits};
use flashrnn_testsuite::random::Random;
use flashrnn_testsuite::{Case, Results, Tensors, run};

use super::cuda;

/// Returns the results of a few combinations of cells and element types.
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
fn repeated_calls_return_the_same_bits() -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    let first = results(&cuda)?;
    for again in 1..=10 {
        assert!(results(&cuda)? == first, "run {again} differs from the first");
    }
    assert!(results(&Cuda::new()?)? == first, "another stream returns other bits");
    Ok(())
}

#[test]
fn several_streams_at_once_return_the_bits_of_one_alone() -> Result<()> {
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

/// Returns results of the fused kernels, for heads in one block and in clusters of 3 to 16 blocks,
/// for rows of different alignment, and for f32.
fn fused_results(cuda: &Cuda, seed: u64) -> Result<Vec<Results>> {
    let lstm = |head_dim| {
        Case::random::<Lstm, bf16, bf16>(
            &Lstm,
            &Problem::new(5, 25, 2, head_dim),
            Tensors::ALL,
            seed,
        )
    };
    let gru =
        Case::random::<Gru, f32, f32>(&Gru, &Problem::new(3, 25, 2, 60), Tensors::PLAIN, seed)?;
    let slstm =
        Case::random::<Slstm, f16, f16>(&Slstm, &Problem::new(9, 25, 3, 80), Tensors::PLAIN, seed)?;
    let mut results = Vec::new();
    for head_dim in [64, 96, 99, 257, 512] {
        results.push(run::<_, _, bf16, bf16>(cuda, &Lstm, &lstm(head_dim)?)?);
    }
    results.push(run::<_, _, f32, f32>(cuda, &Gru, &gru)?);
    results.push(run::<_, _, f16, f16>(cuda, &Slstm, &slstm)?);
    Ok(results)
}

#[test]
fn warps_that_wait_at_random_return_the_same_bits() -> Result<()> {
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

/// Compares the states and d_wx of 10,000 forward and backward passes on each of two concurrent
/// streams.
#[test]
fn ten_thousand_launches_on_two_streams_return_the_same_bits() -> Result<()> {
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
        let (r, b) =
            (cuda.upload(&values(&shapes.r(), 0.1))?, cuda.upload(&values(&shapes.b(), 1.0))?);
        let d_h = cuda.upload(&values(&shapes.h(), 1.0))?;
        let plan = cuda.plan::<bf16, bf16, _>(&Lstm, &problem)?;
        let weights = plan.pack(r.view(), b.view())?;
        let mut states = cuda.alloc::<bf16>(size(&shapes.states()))?;
        let (mut d_wx, mut saved) = (cuda.alloc::<bf16>(wx.len())?, plan.saved()?);
        let mut first = None;
        for launch in 0..launches {
            plan.forward(Forward {
                states: Some(states.view_mut()),
                saved: Some(saved.view_mut()),
                ..Forward::new(&weights, wx.view())
            })?;
            plan.backward(Backward {
                d_h: Some(d_h.view()),
                ..Backward::new(&weights, states.view(), saved.view(), d_wx.view_mut())
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
