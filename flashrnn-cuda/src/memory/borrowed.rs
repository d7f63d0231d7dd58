//! Memory of cudarc's, lent to a handle without a copy.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut, SyncOnDrop};
use flashrnn_core::{Error, Result};

use crate::Cuda;
use crate::device::Place;
use crate::driver::current::{Restoring, keep};
use crate::memory::{View, ViewMut};

/// One of cudarc's slices, lent to one [`Cuda`] for reading. Work enqueued while this lives comes
/// after what was written to the slice before, and before what is written to it later, on whatever
/// stream.
#[must_use]
pub struct Borrowed<'a, P> {
    ptr: CUdeviceptr,
    len: usize,
    place: Place,
    _order: Restoring<SyncOnDrop<'a>>,
    element: PhantomData<&'a [P]>,
}

impl<P> Borrowed<'_, P> {
    /// The whole slice.
    #[must_use]
    pub fn view(&self) -> View<'_, P> {
        View::new(self.ptr, self.len, self.place)
    }
}

/// One of cudarc's slices, lent to one [`Cuda`] for writing, as [`Borrowed`].
#[must_use]
pub struct BorrowedMut<'a, P> {
    ptr: CUdeviceptr,
    len: usize,
    place: Place,
    _order: Restoring<SyncOnDrop<'a>>,
    element: PhantomData<&'a mut [P]>,
}

impl<P> BorrowedMut<'_, P> {
    /// The whole slice.
    #[must_use]
    pub fn view_mut(&mut self) -> ViewMut<'_, P> {
        ViewMut::new(self.ptr, self.len, self.place)
    }
}

impl<P> fmt::Debug for Borrowed<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Borrowed").field(&self.view()).finish()
    }
}

impl<P> fmt::Debug for BorrowedMut<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BorrowedMut").field(&View::<P>::new(self.ptr, self.len, self.place)).finish()
    }
}

impl Cuda {
    /// Lends one of cudarc's slices for reading, without a copy.
    ///
    /// # Errors
    /// [`Error::Argument`] where cudarc can't keep the slice's uses in order: it is on another
    /// stream and belongs to another `CudaContext` than this one's stream, or its context doesn't
    /// track events.
    pub fn borrow<'a, P>(&'a self, slice: &'a CudaSlice<P>) -> Result<Borrowed<'a, P>> {
        self.check_order(slice)?;
        let _kept = keep()?;
        let (ptr, order) = slice.device_ptr(&self.device.stream);
        let (place, order) = (self.device.place(), Restoring::new(order));
        Ok(Borrowed { ptr, len: slice.len(), place, _order: order, element: PhantomData })
    }

    /// Lends one of cudarc's slices for writing, without a copy.
    ///
    /// # Errors
    /// As [`Cuda::borrow`].
    pub fn borrow_mut<'a, P>(&'a self, slice: &'a mut CudaSlice<P>) -> Result<BorrowedMut<'a, P>> {
        self.check_order(slice)?;
        let _kept = keep()?;
        let len = slice.len();
        let (ptr, order) = slice.device_ptr_mut(&self.device.stream);
        let (place, order) = (self.device.place(), Restoring::new(order));
        Ok(BorrowedMut { ptr, len, place, _order: order, element: PhantomData })
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
            why: "it is on another stream, and its context and this one's don't track each other's events",
        })
    }
}
