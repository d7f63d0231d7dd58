//! Grid kernels beside other kernels, which take multiprocessors away or need them too.

use std::sync::Arc;
use std::thread;

use flashrnn_core::{Backend, Lstm, Problem, Result, bf16};
use flashrnn_cuda::Cuda;
use flashrnn_cuda::cudarc::driver::{CudaFunction, CudaStream, LaunchConfig, PushKernelArg};
use flashrnn_cuda::cudarc::nvrtc::Ptx;
use flashrnn_testsuite::{Case, Results, Tensors, run};

use super::cuda;

/// A kernel that keeps a multiprocessor busy for a number of nanoseconds.
const BUSY: &str = ".version 7.8
.target sm_80
.address_size 64
.visible .entry busy(.param .u64 duration) {
    .reg .u64 %began, %now, %duration;
    .reg .pred %p;
    ld.param.u64 %duration, [duration];
    mov.u64 %began, %globaltimer;
again:
    mov.u64 %now, %globaltimer;
    sub.u64 %now, %now, %began;
    setp.lt.u64 %p, %now, %duration;
    @%p bra again;
    ret;
}
";

struct Busy {
    stream: Arc<CudaStream>,
    kernel: CudaFunction,
}

impl Busy {
    fn new(cuda: &Cuda) -> Self {
        let context = cuda.stream().context();
        let module = context.load_module(Ptx::from_src(BUSY)).unwrap();
        Self {
            stream: context.new_stream().unwrap(),
            kernel: module.load_function("busy").unwrap(),
        }
    }

    /// Keeps `blocks` multiprocessors busy for 0.2 s. A block takes most of one's threads.
    fn start(&self, blocks: u32) {
        let config = LaunchConfig {
            grid_dim: (blocks, 1, 1),
            block_dim: (1024, 1, 1),
            shared_mem_bytes: 48 << 10,
        };
        let duration = 200_000_000_u64;
        // SAFETY: the kernel takes one number and accesses no memory.
        unsafe { self.stream.launch_builder(&self.kernel).arg(&duration).launch(config) }.unwrap();
    }
}

fn results(cuda: &Cuda, case: &Case) -> Result<Results> {
    run::<_, _, bf16, bf16>(cuda, &Lstm, case)
}

#[test]
fn other_kernels_and_streams_do_not_change_the_bits() -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    // Nearly as many blocks as the GPU has multiprocessors.
    let problem = Problem::new(16, 40, 1, 768);
    let case = Case::random::<Lstm, bf16, bf16>(&Lstm, &problem, Tensors::ALL, 1)?;
    let alone = results(&cuda, &case)?;
    let busy = Busy::new(&cuda);
    for _ in 0..3 {
        busy.start(40);
        assert!(results(&cuda, &case)? == alone, "another kernel was running before");
    }
    thread::scope(|scope| {
        let streams = [cuda.clone(), cuda.with_new_stream()?, cuda.with_new_stream()?];
        let threads = streams.map(|cuda| {
            let (alone, case) = (&alone, &case);
            scope.spawn(move || -> Result<()> {
                for call in 0..20 {
                    assert!(results(&cuda, case)? == *alone, "call {call} differs");
                }
                Ok(())
            })
        });
        // Begins while grid kernels run.
        for _ in 0..10 {
            busy.start(40);
        }
        threads.into_iter().try_for_each(|thread| thread.join().unwrap())
    })?;
    busy.stream.synchronize().unwrap();
    cuda.synchronize()
}
