//! Tensors named by address.

use std::ptr::NonNull;
use std::slice;

use bytemuck::Pod;
use flashrnn_core::{Backend, Element, Plan, Result, Weights};
use flashrnn_cpu::Cpu;
use flashrnn_cuda::{Cuda, CudaPlan, View, ViewMut};
use pyo3::FromPyObject;

/// Locates a contiguous tensor: the address of its first element, and its size in bytes.
#[derive(Clone, Copy, FromPyObject)]
pub(crate) struct Memory(usize, usize);

impl Memory {
    /// Returns the number of elements of `P`. The library compares it with the plan's shapes, which
    /// also refuses tensors of a smaller type.
    fn len<P>(self) -> usize {
        self.1 / size_of::<P>()
    }
}

/// A backend that reads and writes memory of other libraries.
pub(crate) trait Foreign: Backend {
    /// Borrows a tensor for reading.
    ///
    /// # Safety
    /// The memory holds elements of `P`, aligned for the type, on the backend's device.
    /// Nobody writes to it until all work that uses the view has run.
    unsafe fn foreign<'a, P: Pod + Send + Sync>(memory: Memory) -> Self::View<'a, P>;

    /// Borrows a tensor for writing.
    ///
    /// # Safety
    /// The same as [`Foreign::foreign`], and nobody else reads the memory.
    unsafe fn foreign_mut<'a, P: Pod + Send + Sync>(memory: Memory) -> Self::ViewMut<'a, P>;

    /// Returns the bytes of the memory in which a plan packs weights, 0 if the backend keeps packed
    /// weights in memory of its own.
    fn packed_bytes<T: Element, W: Element>(_: &Self::Plan<T, W>) -> usize {
        0
    }

    /// Packs weights, into `memory` if there is some and the backend can use it.
    ///
    /// # Errors
    /// The same as [`Plan::pack`].
    ///
    /// # Safety
    /// What [`Foreign::foreign`] requires, of `memory` as long as the weights are used.
    unsafe fn pack<T: Element, W: Element>(
        plan: &Self::Plan<T, W>,
        r: Self::View<'_, W>,
        b: Self::View<'_, W>,
        _memory: Option<Memory>,
    ) -> Result<Weights<Self, T>> {
        plan.pack(r, b)
    }

    /// Returns the weights that a plan of another stream has packed into `memory`.
    ///
    /// # Errors
    /// [`flashrnn_core::Error::Unsupported`] if the backend keeps them in memory of its own.
    ///
    /// # Safety
    /// The same as [`Foreign::pack`].
    unsafe fn packed<T: Element, W: Element>(
        _plan: &Self::Plan<T, W>,
        _memory: Memory,
    ) -> Result<Weights<Self, T>> {
        Err(flashrnn_core::Error::Unsupported {
            backend: "cpu",
            what: "packed weights in a tensor".into(),
            why: "it packs them into memory of its own".into(),
        })
    }
}

impl Foreign for Cpu {
    unsafe fn foreign<'a, P: Pod + Send + Sync>(memory: Memory) -> &'a [P] {
        // SAFETY: guaranteed by the caller.
        unsafe { slice::from_raw_parts(pointer(memory), memory.len::<P>()) }
    }

    unsafe fn foreign_mut<'a, P: Pod + Send + Sync>(memory: Memory) -> &'a mut [P] {
        // SAFETY: guaranteed by the caller.
        unsafe { slice::from_raw_parts_mut(pointer(memory), memory.len::<P>()) }
    }
}

/// Returns a pointer to the memory. Empty tensors may have the address 0, so theirs dangles.
fn pointer<P>(memory: Memory) -> *mut P {
    if memory.1 == 0 { NonNull::dangling().as_ptr() } else { memory.0 as *mut P }
}

impl Foreign for Cuda {
    unsafe fn foreign<'a, P: Pod + Send + Sync>(memory: Memory) -> View<'a, P> {
        // SAFETY: guaranteed by the caller.
        unsafe { View::from_raw(memory.0 as u64, memory.len::<P>()) }
    }

    unsafe fn foreign_mut<'a, P: Pod + Send + Sync>(memory: Memory) -> ViewMut<'a, P> {
        // SAFETY: guaranteed by the caller.
        unsafe { ViewMut::from_raw(memory.0 as u64, memory.len::<P>()) }
    }

    fn packed_bytes<T: Element, W: Element>(plan: &CudaPlan<T, W>) -> usize {
        plan.packed_workspace().bytes
    }

    unsafe fn pack<T: Element, W: Element>(
        plan: &CudaPlan<T, W>,
        r: View<'_, W>,
        b: View<'_, W>,
        memory: Option<Memory>,
    ) -> Result<Weights<Self, T>> {
        let Some(memory) = memory else { return plan.pack(r, b) };
        // SAFETY: guaranteed by the caller.
        unsafe { plan.pack_into(r, b, Self::foreign_mut(memory)) }
    }

    unsafe fn packed<T: Element, W: Element>(
        plan: &CudaPlan<T, W>,
        memory: Memory,
    ) -> Result<Weights<Self, T>> {
        // SAFETY: guaranteed by the caller.
        unsafe { plan.packed_in(Self::foreign_mut(memory)) }
    }
}
