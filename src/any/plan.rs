//! Plans and packed weights of any backend. Each call is forwarded to the plan of the backend.

use std::fmt;
use std::sync::Arc;

use flashrnn_core::{
    Backend, Backward, Cell, Element, Forward, Plan, Problem, Result, Saved, Shapes, Step, Weights,
    WeightsLayout, Workspace,
};

use super::backend::{AnyBackend, each, wrap};
use super::memory::{AnyView, Member, foreign, maybe, maybe_mut, own, own_mut, saved, saved_mut};

/// Packed weights of one of the backends.
#[derive(Debug)]
#[non_exhaustive]
pub enum AnyPacked<T: Element> {
    /// For the CPU.
    #[cfg(feature = "cpu")]
    Cpu(Weights<crate::Cpu, T>),
    /// For an NVIDIA GPU.
    #[cfg(feature = "cuda")]
    Cuda(Weights<crate::Cuda, T>),
    /// For a wgpu device.
    #[cfg(feature = "wgpu")]
    Wgpu(Weights<crate::Wgpu, T>),
}

/// The order of packed weights of one of the backends.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AnyOrder {
    /// For the CPU.
    #[cfg(feature = "cpu")]
    Cpu(<crate::Cpu as Backend>::PackedOrder),
    /// For an NVIDIA GPU.
    #[cfg(feature = "cuda")]
    Cuda(<crate::Cuda as Backend>::PackedOrder),
    /// For a wgpu device.
    #[cfg(feature = "wgpu")]
    Wgpu(<crate::Wgpu as Backend>::PackedOrder),
}

/// A plan of one of the backends.
#[allow(clippy::large_enum_variant, reason = "plans are rarely moved")]
enum Inner<T: Element, W: Element> {
    #[cfg(feature = "cpu")]
    Cpu(<crate::Cpu as Backend>::Plan<T, W>),
    #[cfg(feature = "cuda")]
    Cuda(<crate::Cuda as Backend>::Plan<T, W>),
    #[cfg(feature = "wgpu")]
    Wgpu(<crate::Wgpu as Backend>::Plan<T, W>),
}

/// A problem prepared to run on [`AnyBackend`].
pub struct AnyPlan<T: Element, W: Element = T> {
    backend: AnyBackend,
    inner: Inner<T, W>,
    layout: Arc<WeightsLayout<AnyOrder>>,
}

impl<T: Element, W: Element> AnyPlan<T, W> {
    pub(super) fn new<C: Cell>(backend: &AnyBackend, cell: &C, problem: &Problem) -> Result<Self> {
        let inner = wrap!(backend, AnyBackend(backend) => Inner(backend.plan(cell, problem)?));
        let order = wrap!(&inner, Inner(plan) => AnyOrder(plan.weights_layout().order.clone()));
        let layout = Arc::new(problem.shapes::<C>()?.weights_layout(order));
        Ok(Self { backend: backend.clone(), inner, layout })
    }
}

impl<T: Element, W: Element> fmt::Debug for AnyPlan<T, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnyPlan")
            .field("backend", &self.backend)
            .field("problem", self.problem())
            .finish_non_exhaustive()
    }
}

/// A backend that can extract its weights from [`AnyPacked`].
trait Packed: Member {
    fn weights<T: Element>(packed: &AnyPacked<T>) -> Option<&Weights<Self, T>>;
}

macro_rules! packed {
    ($feature:literal, $variant:ident) => {
        #[cfg(feature = $feature)]
        impl Packed for crate::$variant {
            fn weights<T: Element>(packed: &AnyPacked<T>) -> Option<&Weights<Self, T>> {
                #[allow(irrefutable_let_patterns, reason = "it may be the only backend")]
                if let AnyPacked::$variant(weights) = packed { Some(weights) } else { None }
            }
        }
    };
}

packed!("cpu", Cpu);
packed!("cuda", Cuda);
packed!("wgpu", Wgpu);

impl<T: Element, W: Element> Plan<T, W> for AnyPlan<T, W> {
    type Backend = AnyBackend;

    fn problem(&self) -> &Problem {
        each!(&self.inner, Inner(plan) => plan.problem())
    }

    fn shapes(&self) -> &Shapes {
        each!(&self.inner, Inner(plan) => plan.shapes())
    }

    fn weights_layout(&self) -> &Arc<WeightsLayout<AnyOrder>> {
        &self.layout
    }

    fn pack(&self, r: AnyView<'_, W>, b: AnyView<'_, W>) -> Result<Weights<AnyBackend, T>> {
        let packed = wrap!(&self.inner, Inner(plan) => AnyPacked(pack(plan, r, b)?));
        Ok(Weights::new(self.layout.clone(), packed))
    }

    fn saved(&self) -> Result<Saved<AnyBackend, T>> {
        Saved::new(&self.backend, self.shapes(), self.problem().options.save)
    }

    fn forward_workspace(&self) -> Workspace {
        each!(&self.inner, Inner(plan) => plan.forward_workspace())
    }

    fn backward_workspace(&self) -> Workspace {
        each!(&self.inner, Inner(plan) => plan.backward_workspace())
    }

    fn forward(&self, call: Forward<'_, AnyBackend, T>) -> Result<()> {
        each!(&self.inner, Inner(plan) => forward(plan, call))
    }

    fn backward(&self, call: Backward<'_, AnyBackend, T, W>) -> Result<()> {
        each!(&self.inner, Inner(plan) => backward(plan, call))
    }

    fn step(&self, call: Step<'_, AnyBackend, T>) -> Result<()> {
        each!(&self.inner, Inner(plan) => step(plan, call))
    }
}

/// Converts weights to weights of the backend `B`, whose call then checks their layout.
fn weights<B: Packed, T: Element>(weights: &Weights<AnyBackend, T>) -> Result<&Weights<B, T>> {
    B::weights(weights.packed()).ok_or(foreign("weights"))
}

fn pack<B: Member, T: Element, W: Element>(
    plan: &impl Plan<T, W, Backend = B>,
    r: AnyView<'_, W>,
    b: AnyView<'_, W>,
) -> Result<Weights<B, T>> {
    plan.pack(own::<B, W>("r", r)?, own::<B, W>("b", b)?)
}

fn forward<B: Packed, T: Element, W: Element>(
    plan: &impl Plan<T, W, Backend = B>,
    call: Forward<'_, AnyBackend, T>,
) -> Result<()> {
    plan.forward(Forward {
        weights: weights::<B, T>(call.weights)?,
        wx: own::<B, T>("wx", call.wx)?,
        s0: maybe::<B, T::Wide>("s0", call.s0)?,
        lengths: maybe::<B, i32>("lengths", call.lengths)?,
        resets: maybe::<B, u8>("resets", call.resets)?,
        h: maybe_mut::<B, T>("h", call.h)?,
        states: maybe_mut::<B, T>("states", call.states)?,
        last: maybe_mut::<B, T::Wide>("last", call.last)?,
        saved: call.saved.map(saved_mut::<B, T>).transpose()?,
        workspace: maybe_mut::<B, u8>("workspace", call.workspace)?,
    })
}

fn backward<B: Packed, T: Element, W: Element>(
    plan: &impl Plan<T, W, Backend = B>,
    call: Backward<'_, AnyBackend, T, W>,
) -> Result<()> {
    plan.backward(Backward {
        weights: weights::<B, T>(call.weights)?,
        states: own::<B, T>("states", call.states)?,
        saved: saved::<B, T>(call.saved)?,
        wx: maybe::<B, T>("wx", call.wx)?,
        s0: maybe::<B, T::Wide>("s0", call.s0)?,
        lengths: maybe::<B, i32>("lengths", call.lengths)?,
        resets: maybe::<B, u8>("resets", call.resets)?,
        d_h: maybe::<B, T>("d_h", call.d_h)?,
        d_states: maybe::<B, T>("d_states", call.d_states)?,
        d_last: maybe::<B, T::Wide>("d_last", call.d_last)?,
        d_wx: own_mut::<B, T>("d_wx", call.d_wx)?,
        d_r: maybe_mut::<B, W>("d_r", call.d_r)?,
        d_b: maybe_mut::<B, W>("d_b", call.d_b)?,
        d_s0: maybe_mut::<B, T::Wide>("d_s0", call.d_s0)?,
        accumulate: call.accumulate,
        workspace: maybe_mut::<B, u8>("workspace", call.workspace)?,
    })
}

fn step<B: Packed, T: Element, W: Element>(
    plan: &impl Plan<T, W, Backend = B>,
    call: Step<'_, AnyBackend, T>,
) -> Result<()> {
    plan.step(Step {
        weights: weights::<B, T>(call.weights)?,
        wx: own::<B, T>("wx", call.wx)?,
        state: own_mut::<B, T::Wide>("state", call.state)?,
        h: maybe_mut::<B, T>("h", call.h)?,
    })
}
