//! Tensors named by address.

use std::ptr::NonNull;
use std::slice;

use bytemuck::Pod;
use flashrnn_core::Backend;
use flashrnn_cpu::Cpu;
use flashrnn_cuda::{Cuda, View, ViewMut};
use pyo3::FromPyObject;

/// Locates a contiguous tensor: the address of its first element, and its number of elements.
#[derive(Clone, Copy, FromPyObject)]
pub(crate) struct Memory(usize, usize);

/// A backend that reads and writes memory of other libraries.
pub(crate) trait Foreign: Backend {
    /// Borrows a tensor for reading.
    ///
    /// # Safety
    /// The memory holds that many elements of `P`, aligned for the type, on the backend's device.
    /// Nobody writes to it until all work that uses the view has run.
    unsafe fn foreign<'a, P: Pod + Send + Sync>(memory: Memory) -> Self::View<'a, P>;

    /// Borrows a tensor for writing.
    ///
    /// # Safety
    /// The same as [`Foreign::foreign`], and nobody else reads the memory.
    unsafe fn foreign_mut<'a, P: Pod + Send + Sync>(memory: Memory) -> Self::ViewMut<'a, P>;
}

impl Foreign for Cpu {
    unsafe fn foreign<'a, P: Pod + Send + Sync>(Memory(address, len): Memory) -> &'a [P] {
        // SAFETY: guaranteed by the caller. An empty tensor may have the address 0.
        unsafe { slice::from_raw_parts(pointer(address, len), len) }
    }

    unsafe fn foreign_mut<'a, P: Pod + Send + Sync>(Memory(address, len): Memory) -> &'a mut [P] {
        // SAFETY: as in `foreign`.
        unsafe { slice::from_raw_parts_mut(pointer(address, len), len) }
    }
}

/// Returns a pointer to `len` elements, which dangles if there are none.
fn pointer<P>(address: usize, len: usize) -> *mut P {
    if len == 0 { NonNull::dangling().as_ptr() } else { address as *mut P }
}

impl Foreign for Cuda {
    unsafe fn foreign<'a, P: Pod + Send + Sync>(Memory(address, len): Memory) -> View<'a, P> {
        // SAFETY: guaranteed by the caller.
        unsafe { View::from_raw(address as u64, len) }
    }

    unsafe fn foreign_mut<'a, P: Pod + Send + Sync>(
        Memory(address, len): Memory,
    ) -> ViewMut<'a, P> {
        // SAFETY: guaranteed by the caller.
        unsafe { ViewMut::from_raw(address as u64, len) }
    }
}
