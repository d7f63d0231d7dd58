//! Plans: the public interface, with its checks.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use flashrnn_core::trace::print::wgsl;
use flashrnn_core::{
    Backward, Cell, Element, Forward, Len, Plan, Problem, Result, Saved, Shapes, Step, Weights,
    WeightsLayout, Workspace,
};
use flashrnn_gpu::{KernelChoice, check_dtypes};

use crate::backend::Wgpu;
use crate::engine::Engine;
use crate::memory::View;
use crate::memory::operands;
use crate::memory::scratch::workspace;
use crate::passes::pack::PackedOrder;
use crate::select::choice;

/// A problem made ready to run on a device of wgpu's.
///
/// It keeps the scratch memory of calls that were given no workspace, from the first call on: one
/// piece of [`Plan::forward_workspace`]'s size or [`Plan::backward_workspace`]'s for each call that
/// was under way at a time. Dropping the plan gives it back, and so does
/// [`Backend::trim`](flashrnn_core::Backend::trim). For
/// backward passes that is up to 64 MiB of partial sums (or one part of them, if that is more), the
/// gradients of the gates that take no external input, in f32, and with
/// [`Save::Recompute`](flashrnn_core::Save::Recompute) up to 64 MiB of gates.
///
/// A workspace, or what [`View::of`] shows, must lie on the plan's device. In one call, what is
/// read, what is written and the workspace must lie in different buffers ([`View`]).
pub struct WgpuPlan<T: Element, W: Element> {
    wgpu: Wgpu,
    engine: Engine,
    weights: PhantomData<fn() -> (T, W)>,
}

impl<T: Element, W: Element> WgpuPlan<T, W> {
    /// Makes a plan, as [`Backend::plan`](flashrnn_core::Backend::plan) does.
    pub(crate) fn new<C: Cell>(wgpu: &Wgpu, cell: &C, problem: &Problem) -> Result<Self> {
        let shapes = problem.shapes::<C>()?;
        check_dtypes::<T, W>("wgpu")?;
        let engine = Engine::new::<T, W>(
            wgpu,
            [wgsl::sizes::<C>(), wgsl::functions(cell)],
            problem,
            &shapes,
        )?;
        engine.save_pipelines();
        Ok(Self { wgpu: wgpu.clone(), engine, weights: PhantomData })
    }

    /// Describes the kernels of the forward and of the backward pass's time steps.
    #[must_use]
    pub fn kernels(&self) -> [KernelChoice; 2] {
        let Engine { shapes, fused, adapter, .. } = &self.engine;
        choice::of_plan(shapes, T::DTYPE, *fused, *adapter, self.wgpu.choice.family)
    }
}

impl<T: Element, W: Element> fmt::Debug for WgpuPlan<T, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WgpuPlan")
            .field("wgpu", &self.wgpu)
            .field("problem", &self.engine.problem)
            .field("dtypes", &(T::DTYPE, W::DTYPE))
            .finish_non_exhaustive()
    }
}

impl<T: Element, W: Element> Plan<T, W> for WgpuPlan<T, W> {
    type Backend = Wgpu;

    fn problem(&self) -> &Problem {
        &self.engine.problem
    }

    fn shapes(&self) -> &Shapes {
        &self.engine.shapes
    }

    fn weights_layout(&self) -> &Arc<WeightsLayout<PackedOrder>> {
        &self.engine.layout
    }

    fn pack(&self, r: View<'_, W>, b: View<'_, W>) -> Result<Weights<Wgpu, T>> {
        Shapes::check("r", r.len(), &self.engine.shapes.r())?;
        Shapes::check("b", b.len(), &self.engine.shapes.b())?;
        let tensors = [operands::read("r", Some(r)), operands::read("b", Some(b))];
        operands::check(&self.engine.device, tensors)?;
        Ok(Weights::new(self.engine.layout.clone(), self.engine.pack(r, b)?))
    }

    fn saved(&self) -> Result<Saved<Wgpu, T>> {
        Saved::new(&self.wgpu, &self.engine.shapes, self.engine.problem.options.save)
    }

    fn forward_workspace(&self) -> Workspace {
        workspace(&self.engine.forward_regions())
    }

    fn backward_workspace(&self) -> Workspace {
        workspace(&self.engine.backward_regions())
    }

    fn forward(&self, call: Forward<'_, Wgpu, T>) -> Result<()> {
        call.check(self)?;
        operands::check(&self.engine.device, operands::of_forward(&call))?;
        self.engine.device.scope(0, || self.engine.forward(call))
    }

    fn backward(&self, call: Backward<'_, Wgpu, T, W>) -> Result<()> {
        call.check(self)?;
        operands::check(&self.engine.device, operands::of_backward(&call))?;
        self.engine.device.scope(0, || self.engine.backward(call))
    }

    fn step(&self, call: Step<'_, Wgpu, T>) -> Result<()> {
        call.check(self)?;
        operands::check(&self.engine.device, operands::of_step(&call))?;
        self.engine.device.scope(0, || self.engine.step(call))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use flashrnn_core::{Backend, Layout as Order, Options, Save, Slstm, f16};
    use flashrnn_testsuite::run::{CallOptions, ForwardPass};
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
            let pass =
                ForwardPass::<Wgpu, f16>::forward(&wgpu, &plan, &case, CallOptions::default())
                    .unwrap();
            let mut backward = |steps| -> Results {
                plan.engine.gates_steps = steps;
                pass.backward(&wgpu, &plan, &case, CallOptions::default()).unwrap()
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
        let (r, b, wx) =
            (ones(&plan.shapes().r()), ones(&plan.shapes().b()), ones(&plan.shapes().wx()));
        let weights = plan.pack(r.view(), b.view()).unwrap();
        let mut state = wgpu.alloc::<f32>(plan.shapes().state().iter().product()).unwrap();
        let mut step = || {
            let call = Step { weights: &weights, wx: wx.view(), state: state.view_mut(), h: None };
            plan.step(call).unwrap();
            wgpu.device.buffers_made.load(Ordering::Relaxed)
        };
        let first = step();
        assert!(first > 0);
        assert_eq!([(); 5].map(|()| step()), [first; 5]);
    }

    /// Calls with a workspace make no buffer, and those without keep theirs until they are trimmed.
    #[test]
    fn scratch_memory_is_the_callers_or_kept() {
        let Some(wgpu) = testing::wgpu() else { return };
        for save in [Save::Gates, Save::Recompute] {
            let problem = Problem::new(3, 7, 2, 5).with(Options { save, ..Options::default() });
            let plan = wgpu.plan::<f32, f32, _>(&Slstm, &problem).unwrap();
            let ones = |shape: &[usize]| wgpu.upload(&vec![1f32; shape.iter().product()]).unwrap();
            let (r, b, wx) =
                (ones(&plan.shapes().r()), ones(&plan.shapes().b()), ones(&plan.shapes().wx()));
            let (mut d_wx, mut d_r, mut d_b) =
                (ones(&plan.shapes().wx()), ones(&plan.shapes().r()), ones(&plan.shapes().b()));
            let mut states = ones(&plan.shapes().states());
            let mut saved = plan.saved().unwrap();
            let weights = plan.pack(r.view(), b.view()).unwrap();
            let bytes = plan.forward_workspace().bytes.max(plan.backward_workspace().bytes);
            let mut scratch = wgpu.alloc::<u8>(bytes).unwrap();
            let mut calls = |with: bool| {
                plan.forward(Forward {
                    states: Some(states.view_mut()),
                    saved: Some(saved.view_mut()),
                    workspace: with.then(|| scratch.view_mut()),
                    ..Forward::new(&weights, wx.view())
                })
                .unwrap();
                plan.backward(Backward {
                    wx: Some(wx.view()),
                    d_r: Some(d_r.view_mut()),
                    d_b: Some(d_b.view_mut()),
                    workspace: with.then(|| scratch.view_mut()),
                    ..Backward::new(&weights, states.view(), saved.view(), d_wx.view_mut())
                })
                .unwrap();
                wgpu.device.buffers_made.load(Ordering::Relaxed)
            };
            // The first one makes kernels' parameters.
            let first = calls(true);
            assert_eq!(calls(true), first, "{save:?}");
            let kept = calls(false);
            assert_eq!(kept, first + 2, "{save:?}: a piece for each pass");
            assert_eq!(calls(false), kept, "{save:?}");
            wgpu.trim().unwrap();
            assert!(calls(false) >= kept + 2, "{save:?}");
        }
    }
}
