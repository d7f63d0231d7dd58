//! Slices of cudarc, borrowed without a copy.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut, SyncOnDrop};
use flashrnn_core::{Error, Result};

use crate::backend::Cuda;
use crate::device::StreamId;
use crate::driver::current::{Restoring, keep};
use crate::memory::{View, ViewMut};

/// Borrows a slice of cudarc for reading by one [`Cuda`]. Work that this handle enqueues during the
/// borrow runs after all earlier writes to the slice, on any stream, and before all later ones.
#[must_use]
pub struct Borrowed<'a, P> {
    ptr: CUdeviceptr,
    len: usize,
    owner: StreamId,
    _order: Restoring<SyncOnDrop<'a>>,
    element: PhantomData<&'a [P]>,
}

impl<P> Borrowed<'_, P> {
    /// Returns the whole slice for reading.
    #[must_use]
    pub fn view(&self) -> View<'_, P> {
        View::new(self.ptr, self.len, self.owner)
    }
}

/// Borrows a slice of cudarc for writing by one [`Cuda`], with the same guarantees as [`Borrowed`].
#[must_use]
pub struct BorrowedMut<'a, P> {
    ptr: CUdeviceptr,
    len: usize,
    owner: StreamId,
    _order: Restoring<SyncOnDrop<'a>>,
    element: PhantomData<&'a mut [P]>,
}

impl<P> BorrowedMut<'_, P> {
    /// Returns the whole slice for writing.
    #[must_use]
    pub fn view_mut(&mut self) -> ViewMut<'_, P> {
        ViewMut::new(self.ptr, self.len, self.owner)
    }
}

impl<P> fmt::Debug for Borrowed<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Borrowed").field(&self.view()).finish()
    }
}

impl<P> fmt::Debug for BorrowedMut<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BorrowedMut").field(&View::<P>::new(self.ptr, self.len, self.owner)).finish()
    }
}

impl Cuda {
    /// Borrows a slice of cudarc for reading, without a copy.
    ///
    /// # Errors
    /// [`Error::Argument`] if cudarc can't order accesses to the slice: it is on another stream
    /// than this handle, and either belongs to another `CudaContext` or its context doesn't track
    /// events.
    pub fn borrow<'a, P>(&'a self, slice: &'a CudaSlice<P>) -> Result<Borrowed<'a, P>> {
        self.check_order(slice)?;
        let _kept = keep()?;
        let (ptr, order) = slice.device_ptr(&self.device.stream);
        let (owner, order) = (self.device.stream_id(), Restoring::new(order));
        Ok(Borrowed { ptr, len: slice.len(), owner, _order: order, element: PhantomData })
    }

    /// Borrows a slice of cudarc for writing, without a copy.
    ///
    /// # Errors
    /// Same as [`Cuda::borrow`].
    pub fn borrow_mut<'a, P>(&'a self, slice: &'a mut CudaSlice<P>) -> Result<BorrowedMut<'a, P>> {
        self.check_order(slice)?;
        let _kept = keep()?;
        let len = slice.len();
        let (ptr, order) = slice.device_ptr_mut(&self.device.stream);
        let (owner, order) = (self.device.stream_id(), Restoring::new(order));
        Ok(BorrowedMut { ptr, len, owner, _order: order, element: PhantomData })
    }

    fn check_order<P>(&self, slice: &CudaSlice<P>) -> Result<()> {
        let stream = self.stream();
        let same_stream = slice.stream() == stream;
        let tracked = Arc::ptr_eq(slice.context(), stream.context())
            && slice.context().is_managing_stream_synchronization();
        if same_stream || tracked {
            return Ok(());
        }
        Err(Error::Argument {
            tensor: "slice",
            why: "it is on another stream, and its context and the handle's don't track each \
                  other's events",
        })
    }
}
