//! The grid kernels: heads too large for a cluster, and small heads with the cluster kernels
//! switched off.

use std::time::Duration;

use flashrnn_core::{
    Backend, Cell, Element, Elman, Gru, Layout, Lstm, Options, Problem, Result, Slstm, bf16, f16,
};
use flashrnn_cuda::{Cuda, Limits, Waits};
use flashrnn_testsuite::{Case, Tensors, measure, run};

use super::cuda;

/// Leaves all heads to the grid kernels.
const ONLY_GRID: Limits = Limits { cluster: 0, ..Limits::NONE };

/// Compares all results of a problem with the f64 reference.
fn check<C: Cell, T: Element>(
    cuda: &Cuda,
    cell: &C,
    problem: &Problem,
    tensors: Tensors,
    failed: &mut Vec<String>,
) -> Result<()> {
    let case = Case::random::<C, T, T>(cell, problem, tensors, 1)?;
    let got = run::<_, C, T, T>(cuda, cell, &case)?;
    for measured in measure(cell, &case, T::DTYPE, &got)? {
        let what = format!(
            "{} {:?} B {} T {} N {} D {}: {measured:?}",
            C::NAME,
            T::DTYPE,
            problem.batch,
            problem.time,
            problem.heads,
            problem.head_dim
        );
        println!("{what}");
        if !measured.passes() {
            failed.push(what);
        }
    }
    Ok(())
}

#[test]
fn large_heads_match_the_reference() -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    let mut failed = Vec::new();
    let lstm = [
        (16, 14, 1, 768),
        (1, 20, 1, 768),
        (5, 14, 1, 1024),
        (33, 13, 1, 600),
        (64, 13, 1, 832), // with one buffer for sums
        (3, 13, 1, 1111),
        (16, 13, 1, 1536),
        (2, 13, 2, 1024),
        (3, 13, 1, 2048),
    ];
    for (batch, time, heads, head_dim) in lstm {
        let problem = Problem::new(batch, time, heads, head_dim);
        check::<_, bf16>(&cuda, &Lstm, &problem, Tensors::ALL, &mut failed)?;
    }
    let problem = Problem::new(9, 14, 1, 772);
    check::<_, f16>(&cuda, &Gru, &problem, Tensors::ALL, &mut failed)?;
    check::<_, bf16>(&cuda, &Slstm, &problem, Tensors::ALL, &mut failed)?;
    check::<_, f16>(&cuda, &Elman, &problem, Tensors::PLAIN, &mut failed)?;
    check::<_, bf16>(&cuda, &Gru, &Problem::new(16, 14, 1, 512), Tensors::PLAIN, &mut failed)?;
    assert!(failed.is_empty(), "{failed:#?}");
    Ok(())
}

#[test]
fn options_match_the_reference() -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    let mut failed = Vec::new();
    for (i, cluster) in [1, 2, 4, 8].into_iter().enumerate() {
        let cuda = cuda.clone().with_limits(Limits { grid_cluster: Some(cluster), ..ONLY_GRID });
        let options = Options {
            layout: [Layout::BatchMajor, Layout::TimeMajor][i % 2],
            reverse: i < 2,
            forward_clip: Some(0.4),
            recurrent_grad_clip: Some(0.1),
            ..Options::default()
        };
        for (batch, head_dim) in [(1, 3), (7, 50), (40, 99)] {
            let problem = Problem { options, ..Problem::new(batch, 9, 2, head_dim) };
            check::<_, bf16>(&cuda, &Lstm, &problem, Tensors::ALL, &mut failed)?;
            check::<_, f16>(&cuda, &Gru, &problem, Tensors::ALL, &mut failed)?;
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
    Ok(())
}

#[test]
fn stamps_wrap_and_delays_do_not_change_the_bits() -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    let cuda = cuda.with_limits(ONLY_GRID);
    let mut failed = Vec::new();
    // A stamp has 16 bits.
    let long = Problem::new(2, 70_000, 1, 24);
    check::<_, bf16>(&cuda, &Lstm, &long, Tensors::PLAIN, &mut failed)?;
    assert!(failed.is_empty(), "{failed:#?}");

    let delayed = [(9, 2, 80, 1), (9, 2, 80, 4), (16, 1, 768, 2), (3, 1, 1024, 8), (33, 1, 832, 1)];
    for (batch, heads, head_dim, cluster) in delayed {
        let cuda = cuda.clone().with_limits(Limits { grid_cluster: Some(cluster), ..ONLY_GRID });
        let problem = Problem::new(batch, 40, heads, head_dim);
        let case = Case::random::<Lstm, bf16, bf16>(&Lstm, &problem, Tensors::ALL, 1)?;
        let results = |cuda: &Cuda| run::<_, _, bf16, bf16>(cuda, &Lstm, &case);
        let plain = results(&cuda)?;
        let delayed = cuda.clone().with_waits(Waits::Delayed);
        for again in 0..5 {
            assert!(results(&cuda)? == plain, "D {head_dim}: run {again} differs");
            assert!(results(&delayed)? == plain, "D {head_dim}: delayed run {again} differs");
        }
    }
    Ok(())
}

#[test]
fn a_wait_that_lasts_too_long_is_reported_once() -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    // Loads of more words than a lane receives at a time, in groups with missing units.
    for (batch, head_dim) in [(16, 768), (64, 600)] {
        let problem = Problem::new(batch, 200, 1, head_dim);
        let case = Case::random::<Lstm, bf16, bf16>(&Lstm, &problem, Tensors::ALL, 1)?;
        let results = |cuda: &Cuda| run::<_, _, bf16, bf16>(cuda, &Lstm, &case);
        let want = results(&cuda)?;
        let delayed = cuda.clone().with_waits(Waits::Delayed);
        let impatient = delayed.clone().with_wait_limit(Some(Duration::ZERO));
        let failed = results(&impatient).map(|_| ()).unwrap_err().to_string();
        assert!(failed.contains("waited too long"), "{failed}");
        // The call that returned the error may have enqueued another that fails.
        let _ = cuda.synchronize();
        cuda.synchronize()?;
        for limit in [None, Some(Duration::MAX)] {
            let patient = delayed.clone().with_wait_limit(limit);
            assert!(results(&patient)? == want, "B {batch} D {head_dim} limit {limit:?}");
        }
    }
    Ok(())
}

#[test]
fn few_multiprocessors_are_enough() -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    let mut failed = Vec::new();
    for (count, family) in [(40, "grid"), (8, "alternating")] {
        let cuda = cuda.clone().with_multiprocessors(count);
        let problem = Problem::new(5, 14, 1, 768);
        let plan = cuda.plan::<bf16, bf16, _>(&Lstm, &problem)?;
        for kernels in plan.kernels() {
            assert_eq!(kernels.family, family, "{kernels}");
            assert!(family != "grid" || kernels.blocks <= count, "{kernels}");
        }
        check::<_, bf16>(&cuda, &Lstm, &problem, Tensors::ALL, &mut failed)?;
    }
    assert!(failed.is_empty(), "{failed:#?}");
    Ok(())
}
