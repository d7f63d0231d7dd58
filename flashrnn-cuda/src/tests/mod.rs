//! Tests of what the passes are built on: memory, launches, graphs, streams, cuBLAS, and the
//! kernels that prepare the backward pass. Without a GPU they are skipped.

mod blas;
mod launch;
mod memory;
mod recompute;

use std::sync::{Mutex, MutexGuard};

use crate::backend::Cuda;
use crate::kernels::compile::Program;
use crate::kernels::launch::{Kernel, Launch, argument};
use crate::testing;

/// Opens a GPU for one test at a time, because one of them takes nearly all of its memory.
fn cuda() -> Option<(Cuda, MutexGuard<'static, ()>)> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = flashrnn_gpu::lock(&ALONE);
    Some((testing::cuda()?, alone))
}

fn program() -> Program {
    let source = r#"
        // x[i] = 2 x[i] + 1, after the previous kernel has ended.
        extern "C" __global__ void grow(float* x, int n) {
        #if __CUDA_ARCH__ >= 900
            asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
            asm volatile("griddepcontrol.wait;" ::: "memory");
        #endif
            const int i = blockIdx.x * blockDim.x + threadIdx.x;
            if (i < n) x[i] = 2.0f * x[i] + 1.0f;
        }
        // Reverses the block's part of x in shared memory.
        extern "C" __global__ void reverse(float* x) {
            extern __shared__ float part[];
            part[threadIdx.x] = x[threadIdx.x];
            __syncthreads();
            x[threadIdx.x] = part[blockDim.x - 1 - threadIdx.x];
        }
    "#;
    Program {
        name: "src/tests/mod.rs".into(),
        source: source.into(),
        headers: Vec::new(),
        options: vec!["-DTEST".into()],
    }
}

fn kernel(cuda: &Cuda, name: &str) -> Kernel {
    cuda.kernels.module(&program()).unwrap().kernel(name).unwrap()
}

fn grow(
    kernel: &Kernel,
    stream: cudarc::driver::sys::CUstream,
    mut x: u64,
    mut n: i32,
    early: bool,
) {
    let launch = Launch { early, ..Launch::new([(n as u32).div_ceil(128), 1, 1], 128) };
    // SAFETY: grow takes (float*, int), and the caller's x has n elements.
    unsafe { kernel.launch(stream, &launch, &mut [argument(&mut x), argument(&mut n)]).unwrap() };
}

/// Returns a number in -1..1 that depends only on `i`.
fn number(i: usize) -> f32 {
    ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0
}
