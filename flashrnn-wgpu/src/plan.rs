//! The public interface: the implementation of `Backend` for [`Wgpu`], and plans, which check the
//! arguments of calls.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use bytemuck::Pod;
use flashrnn_core::trace::print::wgsl;
use flashrnn_core::{
    Backend, Backward, Cell, Element, Forward, Info, Len, Plan, Problem, Result, Saved, Shapes,
    Step, Weights, WeightsLayout, Workspace,
};
use flashrnn_gpu::{DTYPES, KernelChoice, check_dtypes};

use crate::backend::Wgpu;
use crate::engine::Engine;
use crate::layout;
use crate::memory::operands::{self, Operand, read, workspace, written};
use crate::memory::{Buffer, View, ViewMut};
use crate::packed::{Packed, PackedOrder};
use crate::select::choice;

impl Backend for Wgpu {
    type Buffer<P: Pod + Send + Sync> = Buffer<P>;
    type View<'a, P: Pod + Send + Sync> = View<'a, P>;
    type ViewMut<'a, P: Pod + Send + Sync> = ViewMut<'a, P>;
    type Packed<T: Element> = Packed<T>;
    type PackedOrder = PackedOrder;
    type Plan<T: Element, W: Element> = WgpuPlan<T, W>;

    flashrnn_gpu::device_methods!();

    fn info(&self) -> Info {
        Info { name: "wgpu", device: self.device.name.clone(), dtypes: DTYPES.into() }
    }

    /// Frees the scratch memory of all plans of this device, and waits for all enqueued work,
    /// because only then does the driver get the memory back. The driver may keep some of it.
    fn trim(&self) -> Result<()> {
        self.pools.trim();
        self.kernels.trim();
        self.device.wait()
    }

    fn plan<T: Element, W: Element, C: Cell>(
        &self,
        cell: &C,
        problem: &Problem,
    ) -> Result<WgpuPlan<T, W>> {
        let shapes = problem.shapes::<C>()?;
        check_dtypes::<T, W>("wgpu")?;
        let cell = [wgsl::sizes::<C>(), wgsl::functions(cell)];
        let engine = Engine::new::<T, W>(self, cell, problem, &shapes)?;
        Ok(WgpuPlan { engine, weights: PhantomData })
    }
}

/// A problem prepared for a wgpu device.
///
/// A plan keeps the scratch memory of calls without a workspace: a buffer of
/// [`Plan::forward_workspace`] or [`Plan::backward_workspace`] bytes for each call that ran
/// concurrently. It is freed when the plan is dropped, and by [`Backend::trim`]. A backward pass
/// needs up to 64 MiB for partial sums (more if a single part is larger), memory for the f32
/// gradients of the gates that take no external input, and, with
/// [`Save::Recompute`](flashrnn_core::Save::Recompute), up to 64 MiB for gates.
///
/// A workspace, and the buffers of [`View::of`], must be on the plan's device. Within one call, the
/// tensors that are read, the tensors that are written and the workspace must be in different
/// buffers ([`View`]).
pub struct WgpuPlan<T: Element, W: Element> {
    engine: Engine,
    weights: PhantomData<fn() -> (T, W)>,
}

impl<T: Element, W: Element> WgpuPlan<T, W> {
    /// Describes the kernels that run the time steps of the forward and the backward pass.
    #[must_use]
    pub fn kernels(&self) -> [KernelChoice; 2] {
        let Engine { wgpu, shapes, fused, adapter, .. } = &self.engine;
        choice::of_plan(shapes, T::DTYPE, *fused, *adapter, wgpu.preferences.family)
    }
}

impl<T: Element, W: Element> fmt::Debug for WgpuPlan<T, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WgpuPlan")
            .field("wgpu", &self.engine.wgpu)
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
        operands::check(self.engine.device(), [read("r", Some(r)), read("b", Some(b))])?;
        Ok(Weights::new(self.engine.layout.clone(), self.engine.pack(r, b)?))
    }

    fn saved(&self) -> Result<Saved<Wgpu, T>> {
        Saved::new(&self.engine.wgpu, &self.engine.shapes, self.engine.problem.options.save)
    }

    fn forward_workspace(&self) -> Workspace {
        layout::workspace(&self.engine.forward_regions())
    }

    fn backward_workspace(&self) -> Workspace {
        layout::workspace(&self.engine.backward_regions())
    }

    fn forward(&self, call: Forward<'_, Wgpu, T>) -> Result<()> {
        call.check(self)?;
        let device = self.engine.device();
        operands::check(device, forward_operands(&call))?;
        device.scope(0, || self.engine.forward(call))
    }

    fn backward(&self, call: Backward<'_, Wgpu, T, W>) -> Result<()> {
        call.check(self)?;
        let device = self.engine.device();
        operands::check(device, backward_operands(&call))?;
        device.scope(0, || self.engine.backward(call))
    }

    fn step(&self, call: Step<'_, Wgpu, T>) -> Result<()> {
        call.check(self)?;
        let device = self.engine.device();
        let wx = read("wx", Some(call.wx));
        operands::check(
            device,
            [wx, written("state", Some(&call.state)), written("h", call.h.as_ref())],
        )?;
        device.scope(0, || self.engine.step(call))
    }
}

fn forward_operands<'a, T: Element>(call: &Forward<'a, Wgpu, T>) -> [Option<Operand<'a>>; 10] {
    [
        read("wx", Some(call.wx)),
        read("s0", call.s0),
        read("lengths", call.lengths),
        read("resets", call.resets),
        written("h", call.h.as_ref()),
        written("states", call.states.as_ref()),
        written("last", call.last.as_ref()),
        written("saved.gates", call.saved.as_ref().map(|saved| &saved.gates)),
        written("saved.wide", call.saved.as_ref().map(|saved| &saved.wide)),
        workspace(call.workspace.as_ref()),
    ]
}

fn backward_operands<'a, T: Element, W: Element>(
    call: &Backward<'a, Wgpu, T, W>,
) -> [Option<Operand<'a>>; 15] {
    [
        read("states", Some(call.states)),
        read("saved.gates", Some(call.saved.gates)),
        read("saved.wide", Some(call.saved.wide)),
        read("wx", call.wx),
        read("s0", call.s0),
        read("lengths", call.lengths),
        read("resets", call.resets),
        read("d_h", call.d_h),
        read("d_states", call.d_states),
        read("d_last", call.d_last),
        written("d_wx", Some(&call.d_wx)),
        written("d_r", call.d_r.as_ref()),
        written("d_b", call.d_b.as_ref()),
        written("d_s0", call.d_s0.as_ref()),
        workspace(call.workspace.as_ref()),
    ]
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use flashrnn_core::{Layout as Order, Options, Save, Slstm, f16};
    use flashrnn_testsuite::run::{CallOptions, ForwardPass};
    use flashrnn_testsuite::{Case, Results, Tensors};

    use super::*;
    use crate::testing;

    /// Recomputing the gates of a few steps at a time changes nothing.
    #[test]
    fn gates_are_recomputed_in_parts() {
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
                plan.engine.steps_at_once = steps;
                pass.backward(&wgpu, &plan, &case, CallOptions::default()).unwrap()
            };
            let whole = backward(7);
            for steps in [1, 3, 4] {
                assert_eq!(backward(steps), whole, "{steps} steps, {layout:?}, reverse: {reverse}");
            }
        }
    }

    /// A step uses memory that its plan keeps, so streaming makes no buffers.
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

    /// Calls given a workspace allocate no buffers; the buffers of other calls are kept until
    /// trimmed.
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
            // The first call makes the buffers of kernel arguments.
            let first = calls(true);
            assert_eq!(calls(true), first, "{save:?}");
            let kept = calls(false);
            assert_eq!(kept, first + 2, "{save:?}: one for each pass");
            assert_eq!(calls(false), kept, "{save:?}");
            wgpu.trim().unwrap();
            assert!(calls(false) >= kept + 2, "{save:?}");
        }
    }
}
