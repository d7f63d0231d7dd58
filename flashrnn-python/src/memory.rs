//! Tensors named by address.

use std::ptr::NonNull;
use std::slice;

use bytemuck::Pod;
use flashrnn_core::Backend;
use flashrnn_cpu::Cpu;
use flashrnn_cuda::{Cuda, View, ViewMut};
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
}
