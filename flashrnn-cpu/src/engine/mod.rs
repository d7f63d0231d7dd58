//! The computation of a plan, for one element type and instruction set.
//!
//! A plan holds its engine as a trait object, and the engine holds its cell's kernel as another.
//! The code here is therefore compiled once per element type and instruction set, not once per
//! cell.

mod backward;
mod context;
mod forward;
mod step;

use std::marker::PhantomData;

use flashrnn_core::{Element, Forward, Problem, Result, Shapes, Step};

use self::backward::BackwardEngine;
use self::context::Context;
use self::forward::ForwardEngine;
use self::step::StepEngine;
use crate::cell_kernel::CellKernel;
use crate::cpu::Cpu;
use crate::kernel::{Packed, PackedOrder, Panels};
use crate::memory::WorkspaceView;
use crate::simd::Vector;
use crate::threads::Workers;

pub(crate) use self::backward::BackwardArgs;

/// Computes a plan's calls, whose arguments the plan has checked. The element type of the weights
/// does not matter here because R and b are widened before they are packed, and weight gradients
/// are narrowed when they are stored.
pub(crate) trait Engine<T: Element>: Send + Sync {
    /// Returns the order of packed weights.
    fn order(&self) -> PackedOrder;

    /// Packs `r [Gr, N, D_out, D_in]` and `b [G, N, D]`.
    fn pack(&self, r: &[T::Wide], b: &[T::Wide]) -> Result<Packed<T::Wide>>;

    /// Returns the size of a forward pass's workspace in bytes.
    fn forward_workspace(&self) -> usize;

    /// Returns the size of a backward pass's workspace in bytes.
    fn backward_workspace(&self) -> usize;

    /// Runs all time steps.
    ///
    /// # Safety
    /// `memory` has at least [`Self::forward_workspace`] bytes, and nothing else uses it.
    unsafe fn forward(&self, call: Forward<'_, Cpu, T>, memory: WorkspaceView<'_>);

    /// Computes the gradients.
    ///
    /// # Safety
    /// `memory` has at least [`Self::backward_workspace`] bytes, and nothing else uses it.
    unsafe fn backward(&self, args: BackwardArgs<'_, T>, memory: WorkspaceView<'_>) -> Result<()>;

    /// Advances a state by one time step.
    fn step(&self, call: Step<'_, Cpu, T>) -> Result<()>;
}

/// The engine for the vector `V`.
pub(crate) struct VectorEngine<T: Element, V> {
    context: Context<T>,
    forward: ForwardEngine,
    backward: BackwardEngine,
    step: StepEngine<T>,
    vector: PhantomData<V>,
}

impl<T: Element, V: Vector<T> + Send + Sync> VectorEngine<T, V> {
    /// Makes the engine of a problem. The machine must support the instruction set of `V`, and
    /// `cell` must be compiled for it.
    pub fn build(
        cell: Box<dyn CellKernel<T>>,
        problem: &Problem,
        shapes: &Shapes,
        workers: Workers,
    ) -> Box<dyn Engine<T>> {
        let Shapes { recurrent, head_dim, .. } = *shapes;
        let context = Context {
            cell,
            options: problem.options,
            shapes: shapes.clone(),
            forward: Panels::forward::<V>(recurrent, head_dim, workers.threads()),
            backward: Panels::backward::<V>(recurrent, head_dim),
            workers,
        };
        Box::new(Self {
            forward: ForwardEngine::new::<T, V>(&context),
            backward: BackwardEngine::new::<T, V>(&context),
            step: StepEngine::new::<V>(&context),
            context,
            vector: PhantomData,
        })
    }
}

impl<T: Element, V: Vector<T> + Send + Sync> Engine<T> for VectorEngine<T, V> {
    fn order(&self) -> PackedOrder {
        self.context.forward.order()
    }

    fn pack(&self, r: &[T::Wide], b: &[T::Wide]) -> Result<Packed<T::Wide>> {
        let Context { shapes, forward, backward, workers, .. } = &self.context;
        let (heads, d) = (shapes.heads, shapes.head_dim);
        Packed::new([heads * forward.len(), heads * backward.len(), b.len()], |packed, bias| {
            // In R [Gr, N, D_out, D_in] a gate's units are rows of D elements.
            let source = |head, gate, unit, k| (((gate * heads + head) * d + unit) * d + k, d);
            forward.pack(workers, r, packed, source);
            bias.copy_from_slice(b);
        })
    }

    fn forward_workspace(&self) -> usize {
        self.forward.bytes()
    }

    fn backward_workspace(&self) -> usize {
        self.backward.bytes()
    }

    unsafe fn forward(&self, call: Forward<'_, Cpu, T>, memory: WorkspaceView<'_>) {
        // SAFETY: guaranteed by the caller.
        unsafe { self.forward.run(&self.context, call, memory) }
    }

    unsafe fn backward(&self, args: BackwardArgs<'_, T>, memory: WorkspaceView<'_>) -> Result<()> {
        // SAFETY: guaranteed by the caller; engines are built only on machines that support `V`'s
        // instruction set.
        unsafe { self.backward.run::<T, V>(&self.context, args, memory) }
    }

    fn step(&self, call: Step<'_, Cpu, T>) -> Result<()> {
        self.step.run(&self.context, call)
    }
}
