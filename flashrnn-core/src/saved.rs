//! The methods of [`Saved`], [`SavedRef`] and [`SavedMut`].

use std::fmt;

use crate::{Backend, Element, Len, Result, Save, Saved, SavedMut, SavedRef, Shapes};

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

impl<B: Backend, T: Element> Saved<B, T> {
    /// Allocates memory of the sizes given by `shapes` and `save`.
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
