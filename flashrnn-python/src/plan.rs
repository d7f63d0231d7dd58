//! Plans of any backend, cell and element type, and the passes that they run on memory of other
//! libraries.

use std::any::Any;
use std::marker::PhantomData;

use flashrnn_core::{
    Backend, Backward, Cell, Element, Error, Forward, Plan, Problem, Result, SavedMut, SavedRef,
    Step, Weights, Workspace,
};

use crate::memory::{Foreign, Memory};
use crate::problem::{Description, WithCell, WithElements, with_cell, with_elements};

/// Weights packed by a plan, of any backend and element type.
pub(crate) type AnyWeights = Box<dyn Any + Send + Sync>;

/// The memory of a forward pass. The fields of [`Forward`] have the same names.
pub(crate) struct ForwardMemory {
    pub wx: Memory,
    pub s0: Option<Memory>,
    pub lengths: Option<Memory>,
    pub resets: Option<Memory>,
    pub h: Option<Memory>,
    pub states: Option<Memory>,
    pub last: Option<Memory>,
    pub saved: Option<[Memory; 2]>,
    pub workspace: Option<Memory>,
}

/// The memory of a backward pass. The fields of [`Backward`] have the same names.
pub(crate) struct BackwardMemory {
    pub states: Memory,
    pub saved: [Memory; 2],
    pub wx: Option<Memory>,
    pub s0: Option<Memory>,
    pub lengths: Option<Memory>,
    pub resets: Option<Memory>,
    pub d_h: Option<Memory>,
    pub d_states: Option<Memory>,
    pub d_last: Option<Memory>,
    pub d_wx: Memory,
    pub d_r: Option<Memory>,
    pub d_b: Option<Memory>,
    pub d_s0: Option<Memory>,
    pub workspace: Option<Memory>,
}

/// The memory of a step. The fields of [`Step`] have the same names.
pub(crate) struct StepMemory {
    pub wx: Memory,
    pub state: Memory,
    pub h: Option<Memory>,
}

/// A [`Plan`] whose types are erased.
///
/// # Safety
/// The unsafe methods read and write the given memory. It must be of the plan's element types, be
/// on the plan's device, and stay valid until the enqueued work has run. Written tensors must not
/// overlap with others. The library checks the sizes.
pub(crate) trait AnyPlan: Send + Sync {
    unsafe fn pack(&self, r: Memory, b: Memory, memory: Option<Memory>) -> Result<AnyWeights>;
    unsafe fn packed(&self, memory: Memory) -> Result<AnyWeights>;
    unsafe fn forward(&self, weights: &AnyWeights, memory: ForwardMemory) -> Result<()>;
    unsafe fn backward(&self, weights: &AnyWeights, memory: BackwardMemory) -> Result<()>;
    unsafe fn step(&self, weights: &AnyWeights, memory: StepMemory) -> Result<()>;
    /// Returns the scratch memory of the forward and the backward pass.
    fn workspaces(&self) -> [Workspace; 2];
    /// Returns the bytes of [`Foreign::packed_bytes`].
    fn packed_bytes(&self) -> usize;
}

/// Makes the plan of a description on a backend.
///
/// # Errors
/// [`Error::InvalidProblem`] for unknown names and for weights of a type that does not go with the
/// tensors' type, and the errors of [`Backend::plan`].
pub(crate) fn make<B: Foreign>(backend: &B, description: &Description) -> Result<Box<dyn AnyPlan>> {
    struct OfCell<'a, B, T, W>(&'a B, Problem, PhantomData<(T, W)>);

    impl<B: Foreign, T: Element, W: Element> WithCell for OfCell<'_, B, T, W> {
        type Output = Box<dyn AnyPlan>;

        fn run<C: Cell>(self, cell: &C) -> Result<Self::Output> {
            let plan = self.0.plan::<T, W, C>(cell, &self.1)?;
            Ok(Box::new(Typed::<B, T, W>(plan)))
        }
    }

    struct OfElements<'a, B>(&'a B, &'a Description);

    impl<B: Foreign> WithElements for OfElements<'_, B> {
        type Output = Box<dyn AnyPlan>;

        fn run<T: Element, W: Element>(self) -> Result<Self::Output> {
            let of_cell = OfCell::<B, T, W>(self.0, self.1.problem()?, PhantomData);
            with_cell(self.1.cell(), of_cell)
        }
    }

    let work = OfElements(backend, description);
    with_elements(&description.dtype, &description.weight_dtype, work)
}

/// A plan with its types.
struct Typed<B: Backend, T: Element, W: Element>(B::Plan<T, W>);

impl<B: Foreign, T: Element, W: Element> Typed<B, T, W> {
    /// Returns the weights with their type.
    ///
    /// # Errors
    /// [`Error::Argument`] if a plan of another backend or element type packed them.
    fn weights(weights: &AnyWeights) -> Result<&Weights<B, T>> {
        weights.downcast_ref().ok_or(Error::Argument {
            tensor: "weights",
            why: "packed for another device or dtype; pack them with this plan",
        })
    }
}

/// Borrows optional memory for reading.
///
/// # Safety
/// The same as [`Foreign::foreign`].
unsafe fn read<'a, B: Foreign, P: bytemuck::Pod + Send + Sync>(
    memory: Option<Memory>,
) -> Option<B::View<'a, P>> {
    // SAFETY: guaranteed by the caller.
    memory.map(|memory| unsafe { B::foreign(memory) })
}

/// Borrows optional memory for writing.
///
/// # Safety
/// The same as [`Foreign::foreign_mut`].
unsafe fn write<'a, B: Foreign, P: bytemuck::Pod + Send + Sync>(
    memory: Option<Memory>,
) -> Option<B::ViewMut<'a, P>> {
    // SAFETY: guaranteed by the caller.
    memory.map(|memory| unsafe { B::foreign_mut(memory) })
}

impl<B: Foreign, T: Element, W: Element> AnyPlan for Typed<B, T, W> {
    unsafe fn pack(&self, r: Memory, b: Memory, memory: Option<Memory>) -> Result<AnyWeights> {
        // SAFETY: guaranteed by the caller, here and below.
        Ok(Box::new(unsafe { B::pack(&self.0, B::foreign(r), B::foreign(b), memory) }?))
    }

    unsafe fn packed(&self, memory: Memory) -> Result<AnyWeights> {
        // SAFETY: guaranteed by the caller.
        Ok(Box::new(unsafe { B::packed(&self.0, memory) }?))
    }

    unsafe fn forward(&self, weights: &AnyWeights, memory: ForwardMemory) -> Result<()> {
        let weights = Self::weights(weights)?;
        // SAFETY: guaranteed by the caller.
        let call = unsafe {
            let saved = |[gates, wide]: [Memory; 2]| SavedMut {
                gates: B::foreign_mut(gates),
                wide: B::foreign_mut(wide),
            };
            Forward {
                weights,
                wx: B::foreign(memory.wx),
                s0: read::<B, _>(memory.s0),
                lengths: read::<B, _>(memory.lengths),
                resets: read::<B, _>(memory.resets),
                h: write::<B, _>(memory.h),
                states: write::<B, _>(memory.states),
                last: write::<B, _>(memory.last),
                saved: memory.saved.map(saved),
                workspace: write::<B, _>(memory.workspace),
            }
        };
        self.0.forward(call)
    }

    unsafe fn backward(&self, weights: &AnyWeights, memory: BackwardMemory) -> Result<()> {
        let weights = Self::weights(weights)?;
        let [gates, wide] = memory.saved;
        // SAFETY: guaranteed by the caller.
        let call = unsafe {
            Backward {
                weights,
                states: B::foreign(memory.states),
                saved: SavedRef { gates: B::foreign(gates), wide: B::foreign(wide) },
                wx: read::<B, _>(memory.wx),
                s0: read::<B, _>(memory.s0),
                lengths: read::<B, _>(memory.lengths),
                resets: read::<B, _>(memory.resets),
                d_h: read::<B, _>(memory.d_h),
                d_states: read::<B, _>(memory.d_states),
                d_last: read::<B, _>(memory.d_last),
                d_wx: B::foreign_mut(memory.d_wx),
                d_r: write::<B, _>(memory.d_r),
                d_b: write::<B, _>(memory.d_b),
                d_s0: write::<B, _>(memory.d_s0),
                accumulate: false,
                workspace: write::<B, _>(memory.workspace),
            }
        };
        self.0.backward(call)
    }

    unsafe fn step(&self, weights: &AnyWeights, memory: StepMemory) -> Result<()> {
        let weights = Self::weights(weights)?;
        // SAFETY: guaranteed by the caller.
        let call = unsafe {
            Step {
                weights,
                wx: B::foreign(memory.wx),
                state: B::foreign_mut(memory.state),
                h: write::<B, _>(memory.h),
            }
        };
        self.0.step(call)
    }

    fn workspaces(&self) -> [Workspace; 2] {
        [self.0.forward_workspace(), self.0.backward_workspace()]
    }

    fn packed_bytes(&self) -> usize {
        B::packed_bytes(&self.0)
    }
}
