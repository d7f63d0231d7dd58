//! Several streams of one GPU.

use std::thread;
use std::time::{Duration, Instant};

use flashrnn_core::{Backend, Element, Error, Lstm, Plan, Problem, Result, bf16};
use flashrnn_cuda::{Cuda, Family, testing};

use super::{Layer, cuda};

/// Runs `work` and returns its result and duration.
fn timed<R>(work: impl FnOnce() -> Result<R>) -> Result<(R, Duration)> {
    let begin = Instant::now();
    let done = work()?;
    Ok((done, begin.elapsed()))
}

#[test]
fn a_second_stream_loads_nothing_again() -> Result<()> {
    let Some((first, _alone)) = cuda() else { return Ok(()) };
    for (heads, head_dim) in [(12, 64), (1, 1024)] {
        let problem = Problem::new(16, 256, heads, head_dim);
        let mut layer = Layer::<bf16>::new(&first, &Lstm, &problem)?;
        layer.forward(None)?;
        layer.backward(None)?;
        let (want, loaded) = (layer.outputs()?, testing::loaded_modules(&first));
        assert!(loaded > 0);

        let (second, opened) = timed(|| first.with_new_stream())?;
        assert_eq!(
            testing::loaded_modules(&second),
            loaded,
            "the second stream does not share the first one's modules"
        );
        let (plan, planned) = timed(|| second.plan::<bf16, bf16, _>(&Lstm, &problem))?;
        let mut layer = Layer::<bf16>::new(&second, &Lstm, &problem)?;
        drop(plan);
        second.synchronize()?;
        let ((), forward) = timed(|| layer.forward(None).and_then(|()| second.synchronize()))?;
        let ((), backward) = timed(|| layer.backward(None).and_then(|()| second.synchronize()))?;
        println!(
            "{heads}x{head_dim}: the second stream opens in {opened:?}; plan {planned:?} and \
             forward {forward:?} take {:?}, the first backward {backward:?}",
            planned + forward
        );
        assert_eq!(testing::loaded_modules(&second), loaded, "the second stream loaded modules");
        assert!(
            layer.outputs()? == want,
            "{heads}x{head_dim}: the second stream returns other bits"
        );
    }
    Ok(())
}

#[test]
fn a_handle_outlives_the_one_it_was_made_from() -> Result<()> {
    let Some((first, _alone)) = cuda() else { return Ok(()) };
    let problem = Problem::new(3, 30, 2, 40);
    let mut layer = Layer::<f32>::new(&first, &Lstm, &problem)?;
    layer.forward(None)?;
    layer.backward(None)?;
    let want = layer.outputs()?;
    let second = first.with_new_stream()?;
    drop((layer, first));
    let mut layer = Layer::<f32>::new(&second, &Lstm, &problem)?;
    drop(second);
    layer.forward(None)?;
    layer.backward(None)?;
    assert!(layer.outputs()? == want);
    Ok(())
}

/// A graph of steps must be destroyed before the modules of its kernels are unloaded, whichever of
/// plan and handle is dropped first. Run this under compute-sanitizer.
#[test]
fn graphs_of_steps_are_dropped_with_their_plan_or_their_handle() -> Result<()> {
    let Some((first, _alone)) = cuda() else { return Ok(()) };
    drop(first);
    let problem = Problem::new(3, 40, 1, 48);
    for round in 0..8 {
        let Some(cuda) = testing::cuda() else { return Ok(()) };
        let cuda = cuda.with_family(Family::Alternating);
        let mut layer = Layer::<f32>::new(&cuda, &Lstm, &problem)?;
        layer.forward(None)?;
        layer.backward(None)?;
        if round % 2 == 0 {
            drop(layer);
            drop(cuda);
        } else {
            drop(cuda);
            drop(layer);
        }
    }
    Ok(())
}

/// The streams share cuBLAS, the pool and the modules.
#[test]
fn concurrent_streams_of_one_device_return_the_bits_of_one_alone() -> Result<()> {
    let Some((first, _alone)) = cuda() else { return Ok(()) };
    fn results<T: Element>(cuda: &Cuda, problem: &Problem) -> Result<[Vec<T>; 4]> {
        let mut layer = Layer::<T>::new(cuda, &Lstm, problem)?;
        layer.forward(None)?;
        layer.backward(None)?;
        layer.outputs()
    }
    // One problem for a fused kernel, and one for per-step kernels.
    let problems = [Problem::new(9, 300, 3, 80), Problem::new(5, 70, 1, 700)];
    for problem in &problems {
        let want = results::<f32>(&first, problem)?;
        thread::scope(|scope| {
            let streams = [first.clone(), first.with_new_stream()?, first.with_new_stream()?];
            let threads = streams.map(|cuda| {
                let want = &want;
                scope.spawn(move || -> Result<()> {
                    for call in 0..20 {
                        assert!(results::<f32>(&cuda, problem)? == *want, "call {call} differs");
                    }
                    Ok(())
                })
            });
            threads.into_iter().try_for_each(|thread| thread.join().unwrap())
        })?;
    }
    Ok(())
}

#[test]
fn weights_stay_with_their_stream() -> Result<()> {
    let Some((first, _alone)) = cuda() else { return Ok(()) };
    let problem = Problem::new(3, 5, 2, 40);
    let second = first.with_new_stream()?;
    let mut mine = Layer::<f32>::new(&first, &Lstm, &problem)?;
    let mut theirs = Layer::<f32>::new(&second, &Lstm, &problem)?;
    assert!(mine.plan.accepts(&mine.weights) && !mine.plan.accepts(&theirs.weights));
    std::mem::swap(&mut mine.weights, &mut theirs.weights);
    for outcome in [mine.forward(None), mine.backward(None)] {
        assert!(matches!(outcome, Err(Error::Argument { tensor: "weights", .. })), "{outcome:?}");
    }
    Ok(())
}

#[test]
fn cudas_per_thread_stream_is_refused() {
    let Some((first, _alone)) = cuda() else { return };
    let stream = first.stream().context().per_thread_stream();
    for refused in [first.with_stream(stream.clone()), Cuda::on_stream(stream)] {
        assert!(matches!(refused, Err(Error::Argument { tensor: "stream", .. })), "{refused:?}");
    }
}
