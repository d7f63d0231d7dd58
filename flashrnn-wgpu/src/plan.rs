//! The backend and its plans: the public interface, with its checks.

use std::marker::PhantomData;

use bytemuck::Pod;
use flashrnn_core::trace::print::wgsl;
use flashrnn_core::{
    Backend, Backward, Cell, Dtype, Element, Forward, Info, Len, Options, Plan, Problem, Result, Saved,
    Shapes, Step,
};

use crate::device::Wgpu;
use crate::engine::Engine;
use crate::limits::unsupported;
use crate::memory::{Buffer, View, ViewMut};

impl Backend for Wgpu {
    type Buffer<P: Pod + Send + Sync> = Buffer<P>;
    type View<'a, P: Pod + Send + Sync> = View<'a, P>;
    type ViewMut<'a, P: Pod + Send + Sync> = ViewMut<'a, P>;
    type Plan<T: Element, W: Element> = WgpuPlan<T, W>;

    fn info(&self) -> Info {
        let dtypes = vec![Dtype::F32, Dtype::Bf16, Dtype::F16];
        Info { name: "wgpu", device: self.device.name.clone(), dtypes }
    }

    fn checks_lengths(&self) -> bool {
        false
    }

    fn alloc<P: Pod + Send + Sync>(&self, len: usize) -> Result<Buffer<P>> {
        self.device.alloc(len)
    }

    fn upload<P: Pod + Send + Sync>(&self, data: &[P]) -> Result<Buffer<P>> {
        self.device.upload(data)
    }

    fn download<P: Pod + Send + Sync>(&self, view: View<'_, P>) -> Result<Vec<P>> {
        self.device.download(view)
    }

    fn synchronize(&self) -> Result<()> {
        self.device.synchronize()
    }

    fn view<'a, P: Pod + Send + Sync>(&self, buffer: &'a Buffer<P>) -> View<'a, P> {
        buffer.view()
    }

    fn view_mut<'a, P: Pod + Send + Sync>(&self, buffer: &'a mut Buffer<P>) -> ViewMut<'a, P> {
        buffer.view_mut()
    }

    fn plan<T: Element, W: Element, C: Cell>(&self, cell: &C, problem: &Problem) -> Result<WgpuPlan<T, W>> {
        let shapes = problem.shapes::<C>()?;
        if !self.info().dtypes.contains(&T::DTYPE) {
            return Err(unsupported(format!("tensors of {}", T::DTYPE), "they are f32, bf16 or f16".into()));
        }
        if W::DTYPE != T::DTYPE && W::DTYPE != Dtype::F32 {
            let what = format!("weights of {} with tensors of {}", W::DTYPE, T::DTYPE);
            return Err(unsupported(
                what,
                "weights have the tensors' type, or f32 beside 16-bit tensors".into(),
            ));
        }
        let engine =
            Engine::new::<T, W>(self, [wgsl::sizes::<C>(), wgsl::functions(cell)], problem, &shapes)?;
        engine.save_pipelines();
        Ok(WgpuPlan { wgpu: self.clone(), engine, weights: PhantomData })
    }
}

/// A problem made ready to run on a device of wgpu's.
///
/// It keeps the memory that its calls work in, from the first call on. For backward passes that is up to 64 MiB of partial sums (or
/// one part of them, if that is more), the gradients of the gates that take no external input, in f32, and with
/// [`Save::Recompute`](flashrnn_core::Save::Recompute) up to 64 MiB of gates.
pub struct WgpuPlan<T: Element, W: Element> {
    wgpu: Wgpu,
    engine: Engine,
    weights: PhantomData<fn() -> (T, W)>,
}

/// R rounded to `T`, R transposed and b, in the form of shaders/weights.wgsl.
pub struct WgpuWeights {
    pub(crate) packed: Buffer<u32>,
}

impl<T: Element, W: Element> Plan<T, W> for WgpuPlan<T, W> {
    type Backend = Wgpu;
    type Weights = WgpuWeights;

    fn problem(&self) -> &Problem {
        &self.engine.problem
    }

    fn shapes(&self) -> &Shapes {
        &self.engine.shapes
    }

    fn pack(&self, r: View<'_, W>, b: View<'_, W>) -> Result<WgpuWeights> {
        Shapes::check("r", r.len(), &self.engine.shapes.r())?;
        Shapes::check("b", b.len(), &self.engine.shapes.b())?;
        self.engine.pack(r, b)
    }

    fn saved(&self) -> Result<Saved<Wgpu, T>> {
        Saved::new(&self.wgpu, &self.engine.shapes, self.engine.problem.options.save)
    }

    fn forward(&self, call: Forward<'_, Wgpu, T, W>) -> Result<()> {
        call.check(&self.wgpu, &self.engine.shapes, self.engine.problem.options.save)?;
        self.engine.device.scope(0, || self.engine.forward(call))
    }

    fn backward(&self, call: Backward<'_, Wgpu, T, W>) -> Result<()> {
        call.check(&self.wgpu, &self.engine.shapes, self.engine.problem.options.save)?;
        self.engine.device.scope(0, || self.engine.backward(call))
    }

    fn step(&self, call: Step<'_, Wgpu, T, W>) -> Result<()> {
        call.check(&self.engine.shapes)?;
        self.engine.device.scope(0, || self.engine.step(call))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use flashrnn_core::{Layout as Order, Save, Slstm, f16};
    use flashrnn_testsuite::run::{How, Pass};
    use flashrnn_testsuite::{Case, Results, Tensors};

    use super::*;
    use crate::testing;

    /// The gates of a few steps at a time are the gates of all.
    #[test]
    fn gates_again_in_parts() {
        let Some(wgpu) = testing::wgpu() else { return };
        for (layout, reverse) in
            [(Order::BatchMajor, false), (Order::BatchMajor, true), (Order::TimeMajor, true)]
        {
            let problem = Problem::new(3, 7, 2, 5).with(Options {
                save: Save::Recompute,
                layout,
                reverse,
                ..Options::default()
            });
            let case = Case::random::<_, f16, f16>(&Slstm, &problem, Tensors::ALL, 5).unwrap();
            let mut plan = wgpu.plan::<f16, f16, _>(&Slstm, &problem).unwrap();
            let pass = Pass::<Wgpu, f16, f16>::forward(&wgpu, &plan, &case).unwrap();
            let mut backward = |steps| -> Results {
                plan.engine.gates_steps = steps;
                pass.backward(&wgpu, &plan, &case, How::default()).unwrap()
            };
            let whole = backward(7);
            for steps in [1, 3, 4] {
                assert_eq!(backward(steps), whole, "{steps} steps, {layout:?}, reverse: {reverse}");
            }
        }
    }

    /// A step works in memory of its plan's, so that streaming makes no buffers.
    #[test]
    fn steps_allocate_nothing() {
        let Some(wgpu) = testing::wgpu() else { return };
        let plan = wgpu.plan::<f16, f16, _>(&Slstm, &Problem::new(2, 1, 1, 8)).unwrap();
        let ones = |shape: &[usize]| wgpu.upload(&vec![f16::ONE; shape.iter().product()]).unwrap();
        let (r, b, wx) = (ones(&plan.shapes().r()), ones(&plan.shapes().b()), ones(&plan.shapes().wx()));
        let weights = plan.pack(r.view(), b.view()).unwrap();
        let mut state = wgpu.alloc::<f32>(plan.shapes().state().iter().product()).unwrap();
        let mut step = || {
            let call = Step { wx: wx.view(), weights: &weights, state: state.view_mut(), h: None };
            plan.step(call).unwrap();
            wgpu.device.buffers_made.load(Ordering::Relaxed)
        };
        let first = step();
        assert!(first > 0);
        assert_eq!([(); 5].map(|()| step()), [first; 5]);
    }
}
