//! Calls that the caller captures in a graph of its own.

use cudarc::driver::sys::{
    CUgraphInstantiate_flags as Instantiate, CUstreamCaptureMode as CaptureMode,
};
use flashrnn_core::{Backend, Element, Lstm, Options, Plan, Problem, Result, bf16};
use flashrnn_cuda::{Cuda, Family, cudarc};

use super::{Layer, cuda};

/// Returns the outputs of both passes after the first, the second and the 1000th replay of one graph.
/// Before the first two, another call on the captured stream uses the same kernels on other tensors.
fn replays<T: Element>(cuda: &Cuda, problem: &Problem) -> Result<Vec<[Vec<T>; 4]>> {
    // The stream is new, so that a plan's first calls on it are captured.
    let cuda = cuda.with_new_stream()?;
    let mut layer = Layer::<T>::new(&cuda, &Lstm, problem)?;
    let options = Options { reverse: true, ..Options::default() };
    let mut other = Layer::<T>::new(&cuda, &Lstm, &problem.clone().with(options))?;
    let [forward, backward] =
        [layer.plan.forward_workspace(), layer.plan.backward_workspace()].map(|w| w.bytes);
    let (mut forward, mut backward) = (cuda.alloc(forward)?, cuda.alloc(backward)?);
    cuda.synchronize()?;
    // In the strictest mode, which forbids every thread to allocate or to load a module.
    let stream = cuda.stream();
    stream.begin_capture(CaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL).unwrap();
    let captured =
        layer.forward(Some(&mut forward)).and_then(|()| layer.backward(Some(&mut backward)));
    let flags = Instantiate::CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY;
    let graph = stream.end_capture(flags).unwrap().expect("a capture that is valid");
    captured?;
    let mut outputs = Vec::new();
    for _ in 0..2 {
        other.forward(None)?;
        other.backward(None)?;
        graph.launch().unwrap();
        outputs.push(layer.outputs()?);
    }
    for _ in 2..1000 {
        graph.launch().unwrap();
    }
    outputs.push(layer.outputs()?);
    Ok(outputs)
}

#[test]
fn a_captured_call_returns_the_bits_of_a_call() -> Result<()> {
    let Some((first, _alone)) = cuda() else { return Ok(()) };
    fn check<T: Element + PartialEq>(cuda: &Cuda, problem: &Problem) -> Result<()> {
        let mut layer = Layer::<T>::new(cuda, &Lstm, problem)?;
        layer.forward(None)?;
        layer.backward(None)?;
        let want = layer.outputs()?;
        for got in replays::<T>(cuda, problem)? {
            assert!(got == want, "{problem:?} with {}: a replay returns other bits", T::DTYPE);
        }
        Ok(())
    }
    // Fused kernels, kernels over the whole GPU, and per-step kernels of few and of many steps.
    check::<bf16>(&first, &Problem::new(16, 100, 12, 64))?;
    check::<bf16>(&first, &Problem::new(16, 100, 1, 1024))?;
    let per_step = first.clone().with_family(Family::Alternating);
    check::<f32>(&per_step, &Problem::new(3, 300, 2, 40))?;
    check::<f32>(&per_step, &Problem::new(3, 10, 2, 40))
}
