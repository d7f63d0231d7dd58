//! What a forward pass leaves to its backward pass, besides the states. It belongs to the caller.

use std::fmt;

use crate::{Backend, Element, Len, Result, Save, Shapes};

/// What a forward pass leaves to its backward pass, borrowed for reading. See [`Saved`].
pub struct SavedRef<'a, B: Backend, T: Element> {
    /// `B·T·G·N·D` gates with [`Save::Gates`], none with [`Save::Recompute`].
    pub gates: B::View<'a, T>,
    /// States and gates in full, where `T` is 16 bits.
    pub wide: B::View<'a, T::Wide>,
}

impl<B: Backend, T: Element> Clone for SavedRef<'_, B, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend, T: Element> Copy for SavedRef<'_, B, T> {}

impl<B: Backend, T: Element> SavedRef<'_, B, T> {
    pub(crate) fn check(&self, shapes: &Shapes, save: Save) -> Result<()> {
        check::<T>(self.gates.len(), self.wide.len(), shapes, save)
    }
}

/// What a forward pass leaves to its backward pass, borrowed for writing. See [`Saved`].
pub struct SavedMut<'a, B: Backend, T: Element> {
    /// As [`SavedRef::gates`].
    pub gates: B::ViewMut<'a, T>,
    /// As [`SavedRef::wide`].
    pub wide: B::ViewMut<'a, T::Wide>,
}

impl<B: Backend, T: Element> SavedMut<'_, B, T> {
    pub(crate) fn check(&self, shapes: &Shapes, save: Save) -> Result<()> {
        check::<T>(self.gates.len(), self.wide.len(), shapes, save)
    }
}

fn check<T: Element>(gates: usize, wide: usize, shapes: &Shapes, save: Save) -> Result<()> {
    let want = shapes.saved::<T>(save);
    Shapes::check("saved.gates", gates, &want[..1])?;
    Shapes::check("saved.wide", wide, &want[1..])
}

/// Owned memory for what a forward pass leaves to its backward pass, from
/// [`Plan::saved`](crate::Plan::saved). A caller with an allocator of its own gives views of two
/// buffers instead, whose sizes are [`Shapes::saved`].
///
/// The order of the elements is the backend's own: only a plan of the same cell, sizes and options,
/// of the same backend and device, finds in them what the forward pass wrote. Another plan of equal
/// sizes reads them as other numbers, and never reads beyond them.
pub struct Saved<B: Backend, T: Element> {
    backend: B,
    gates: B::Buffer<T>,
    wide: B::Buffer<T::Wide>,
}

impl<B: Backend, T: Element> Saved<B, T> {
    /// Allocates what `shapes` and `save` ask for.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory)
    pub fn new(backend: &B, shapes: &Shapes, save: Save) -> Result<Self> {
        let [gates, wide] = shapes.saved::<T>(save);
        Ok(Self {
            backend: backend.clone(),
            gates: backend.alloc(gates)?,
            wide: backend.alloc(wide)?,
        })
    }

    /// Borrows the memory for a backward pass.
    #[must_use]
    pub fn view(&self) -> SavedRef<'_, B, T> {
        SavedRef { gates: self.backend.view(&self.gates), wide: self.backend.view(&self.wide) }
    }

    /// Borrows the memory for a forward pass.
    #[must_use]
    pub fn view_mut(&mut self) -> SavedMut<'_, B, T> {
        SavedMut {
            gates: self.backend.view_mut(&mut self.gates),
            wide: self.backend.view_mut(&mut self.wide),
        }
    }
}

impl<B: Backend, T: Element> fmt::Debug for Saved<B, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SavedRef { gates, wide } = self.view();
        f.debug_struct("Saved")
            .field("dtype", &T::DTYPE)
            .field("gates", &gates.len())
            .field("wide", &wide.len())
            .finish_non_exhaustive()
    }
}
