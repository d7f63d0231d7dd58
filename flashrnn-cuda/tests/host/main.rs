//! The host side, on a GPU: streams share compiled kernels (`streams.rs`); calls can be captured in
//! a caller's graph (`capture.rs`) and restore the caller's context (`context.rs`); workspaces
//! suffice, weights can be packed into the caller's memory, memory is returned to the GPU, and
//! memory of other handles is refused (`memory.rs`). Without a GPU the tests are skipped.

mod capture;
mod context;
mod memory;
mod streams;

use std::sync::{Mutex, MutexGuard};

use flashrnn_core::{
    Backend, Backward, Cell, Element, Forward, Plan, Problem, Result, Saved, Shapes, Weights,
};
use flashrnn_cuda::{Buffer, Cuda, CudaPlan, testing};
use flashrnn_testsuite::random::Random;

/// Opens a GPU for one test at a time, because most tests measure its memory.
fn cuda() -> Option<(Cuda, MutexGuard<'static, ()>)> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = flashrnn_gpu::lock(&ALONE);
    Some((testing::cuda()?, alone))
}

fn size(shape: &[usize]) -> usize {
    shape.iter().product()
}

fn numbers<T: Element>(seed: u64, shape: &[usize], deviation: f64) -> Vec<T> {
    Random::new(seed).normals(size(shape), deviation).into_iter().map(T::from_f64).collect()
}

/// A plan and all buffers of its calls, on one stream.
struct Layer<T: Element> {
    cuda: Cuda,
    plan: CudaPlan<T, T>,
    weights: Weights<Cuda, T>,
    wx: Buffer<T>,
    d_h: Buffer<T>,
    states: Buffer<T>,
    saved: Saved<Cuda, T>,
    d_wx: Buffer<T>,
    d_r: Buffer<T>,
    d_b: Buffer<T>,
}

impl<T: Element> Layer<T> {
    fn new<C: Cell>(cuda: &Cuda, cell: &C, problem: &Problem) -> Result<Self> {
        let plan = cuda.plan::<T, T, C>(cell, problem)?;
        let shapes: Shapes = plan.shapes().clone();
        let deviation = 1.0 / (shapes.head_dim as f64).sqrt();
        let r = cuda.upload(&numbers::<T>(1, &shapes.r(), deviation))?;
        let b = cuda.upload(&numbers::<T>(2, &shapes.b(), 1.0))?;
        Ok(Self {
            weights: plan.pack(r.view(), b.view())?,
            saved: plan.saved()?,
            plan,
            wx: cuda.upload(&numbers::<T>(3, &shapes.wx(), 1.0))?,
            d_h: cuda.upload(&numbers::<T>(4, &shapes.h(), 1.0))?,
            states: cuda.alloc(size(&shapes.states()))?,
            d_wx: cuda.alloc(size(&shapes.wx()))?,
            d_r: cuda.alloc(size(&shapes.r()))?,
            d_b: cuda.alloc(size(&shapes.b()))?,
            cuda: cuda.clone(),
        })
    }

    fn forward(&mut self, workspace: Option<&mut Buffer<u8>>) -> Result<()> {
        self.plan.forward(Forward {
            states: Some(self.states.view_mut()),
            saved: Some(self.saved.view_mut()),
            workspace: workspace.map(Buffer::view_mut),
            ..Forward::new(&self.weights, self.wx.view())
        })
    }

    fn backward(&mut self, workspace: Option<&mut Buffer<u8>>) -> Result<()> {
        self.plan.backward(Backward {
            wx: Some(self.wx.view()),
            d_h: Some(self.d_h.view()),
            d_r: Some(self.d_r.view_mut()),
            d_b: Some(self.d_b.view_mut()),
            workspace: workspace.map(Buffer::view_mut),
            ..Backward::new(
                &self.weights,
                self.states.view(),
                self.saved.view(),
                self.d_wx.view_mut(),
            )
        })
    }

    /// Downloads all outputs of both passes.
    fn outputs(&self) -> Result<[Vec<T>; 4]> {
        let get = |buffer: &Buffer<T>| self.cuda.download(buffer.view());
        Ok([get(&self.states)?, get(&self.d_wx)?, get(&self.d_r)?, get(&self.d_b)?])
    }
}
