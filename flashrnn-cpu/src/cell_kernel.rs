//! The two functions that depend on the cell, compiled for an instruction set.

use std::marker::PhantomData;

use flashrnn_core::{Cell, Element};

use crate::kernel::{BackwardBlock, CellTask, ForwardBlock};
use crate::simd::{Level, Vector, VectorTypes};

/// A cell's kernel, with the types of the cell and of the vector erased.
pub(crate) trait CellKernel<T: Element>: Send + Sync {
    /// Computes a block of the forward pass.
    ///
    /// # Safety
    /// The machine supports the kernel's instruction set; no other thread computes the block; all
    /// blocks of the previous step are done.
    unsafe fn forward(&self, block: ForwardBlock<'_, T>);

    /// Computes a block of the backward pass.
    ///
    /// # Safety
    /// Same as for [`CellKernel::forward`].
    unsafe fn backward(&self, block: BackwardBlock<'_, T>);
}

/// The kernel of the cell `C`, monomorphised for the vector `V`.
struct MonoKernel<C, V> {
    cell: C,
    vector: PhantomData<fn() -> V>,
}

impl<C: Cell, T: Element, V: Vector<T>> CellKernel<T> for MonoKernel<C, V> {
    unsafe fn forward(&self, block: ForwardBlock<'_, T>) {
        // SAFETY: guaranteed by the caller.
        unsafe { V::vectorize(CellTask { cell: &self.cell, block }) }
    }

    unsafe fn backward(&self, block: BackwardBlock<'_, T>) {
        // SAFETY: guaranteed by the caller.
        unsafe { V::vectorize(CellTask { cell: &self.cell, block }) }
    }
}

/// Returns the cell's kernel for `level`.
pub(crate) fn cell_kernel<T: VectorTypes, C: Cell>(
    cell: &C,
    level: Level,
) -> Box<dyn CellKernel<T>> {
    fn of<T: Element, C: Cell, V: Vector<T>>(cell: &C) -> Box<dyn CellKernel<T>> {
        Box::new(MonoKernel { cell: cell.clone(), vector: PhantomData::<fn() -> V> })
    }
    match level {
        Level::Portable => of::<T, C, T::Portable>(cell),
        Level::Avx2 => of::<T, C, T::Avx2>(cell),
        Level::Avx512 => of::<T, C, T::Avx512>(cell),
    }
}
