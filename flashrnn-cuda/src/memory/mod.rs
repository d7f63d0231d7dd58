//! Device memory, either owned ([`Buffer`]) or borrowed from a buffer or the caller ([`View`],
//! [`ViewMut`]).

pub(crate) mod borrowed;
pub(crate) mod scratch;
mod transfer;

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use cudarc::driver::sys::CUdeviceptr;
use flashrnn_core::{Error, Len, Result};

use crate::device::{Device, StreamId};

/// Implements `Debug` and `len`, both as a method and for the trait [`Len`].
macro_rules! len {
    ($type:ty) => {
        impl<P> $type {
            /// Returns the number of elements.
            #[must_use]
            pub fn len(&self) -> usize {
                self.len
            }

            /// Returns whether there are no elements.
            #[must_use]
            pub fn is_empty(&self) -> bool {
                self.len == 0
            }
        }

        impl<P> Len for $type {
            fn len(&self) -> usize {
                self.len
            }
        }

        impl<P> fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let name = stringify!($type).split('<').next().unwrap_or_default();
                f.debug_struct(name)
                    .field("element", &std::any::type_name::<P>())
                    .field("len", &self.len)
                    .field("ptr", &format_args!("{:#x}", self.ptr))
                    .finish_non_exhaustive()
            }
        }
    };
}

/// Owns device memory for `len` elements. It is allocated and freed in the stream order of the
/// [`Cuda`](crate::Cuda) that made it.
pub struct Buffer<P> {
    ptr: CUdeviceptr,
    len: usize,
    device: Arc<Device>,
    element: PhantomData<P>,
}

impl<P> Buffer<P> {
    /// Borrows the whole buffer for reading.
    #[must_use]
    pub fn view(&self) -> View<'_, P> {
        View::new(self.ptr, self.len, self.device.stream_id())
    }

    /// Borrows the whole buffer for writing.
    #[must_use]
    pub fn view_mut(&mut self) -> ViewMut<'_, P> {
        ViewMut::new(self.ptr, self.len, self.device.stream_id())
    }

    /// Returns the address of the first element, or 0 if there are no elements.
    #[must_use]
    pub fn ptr(&self) -> CUdeviceptr {
        self.ptr
    }

    /// Takes ownership of `len` elements at `ptr`, which `device` allocated.
    pub(crate) fn new(ptr: CUdeviceptr, len: usize, device: &Arc<Device>) -> Self {
        Self { ptr, len, device: device.clone(), element: PhantomData }
    }
}

len!(Buffer<P>);

impl<P> Drop for Buffer<P> {
    fn drop(&mut self) {
        self.device.free(self.ptr);
    }
}

/// Borrows device memory for reading.
pub struct View<'a, P> {
    ptr: CUdeviceptr,
    len: usize,
    owner: Option<StreamId>,
    memory: PhantomData<&'a [P]>,
}

impl<P> Clone for View<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P> Copy for View<'_, P> {}

/// Borrows device memory for writing.
pub struct ViewMut<'a, P> {
    ptr: CUdeviceptr,
    len: usize,
    owner: Option<StreamId>,
    memory: PhantomData<&'a mut [P]>,
}

macro_rules! view {
    ($view:ident) => {
        impl<'a, P> $view<'a, P> {
            /// Wraps `len` elements at `ptr` without taking ownership.
            ///
            /// # Safety
            /// The memory must hold `len` elements of `P`, aligned as the type requires, and be
            /// readable (for a `ViewMut` also writable) from the device's context, until all
            /// enqueued work that uses the view has run. Until then, all other writes (for a
            /// `ViewMut`, also reads) must be ordered by the device's stream.
            #[must_use]
            pub unsafe fn from_raw(ptr: CUdeviceptr, len: usize) -> Self {
                Self { ptr, len, owner: None, memory: PhantomData }
            }

            /// Wraps memory that is valid on the stream `owner` and borrowed for `'a`.
            pub(crate) fn new(ptr: CUdeviceptr, len: usize, owner: StreamId) -> Self {
                Self { ptr, len, owner: Some(owner), memory: PhantomData }
            }

            /// Returns the address of the first element, or 0 if there are no elements.
            #[must_use]
            pub fn ptr(&self) -> CUdeviceptr {
                if self.len == 0 { 0 } else { self.ptr }
            }

            /// Returns the elements in `range`.
            ///
            /// # Errors
            /// [`Error::Shape`] if the range exceeds the view.
            pub fn slice(self, range: impl RangeBounds<usize>) -> Result<Self> {
                let start = match range.start_bound() {
                    Bound::Included(&start) => Some(start),
                    Bound::Excluded(&start) => start.checked_add(1),
                    Bound::Unbounded => Some(0),
                };
                let end = match range.end_bound() {
                    Bound::Included(&end) => end.checked_add(1),
                    Bound::Excluded(&end) => Some(end),
                    Bound::Unbounded => Some(self.len),
                };
                match (start, end) {
                    (Some(start), Some(end)) if start <= end && end <= self.len => Ok(Self {
                        ptr: self.ptr + (start * size_of::<P>()) as CUdeviceptr,
                        len: end - start,
                        ..self
                    }),
                    _ => Err(Error::Shape {
                        tensor: "slice of a view",
                        got: vec![start.unwrap_or(usize::MAX), end.unwrap_or(usize::MAX)],
                        want: vec![0, self.len],
                    }),
                }
            }

            /// Checks that `device` may use the view. A buffer's memory is valid only on its own
            /// stream.
            ///
            /// # Errors
            /// [`Error::Argument`] if the memory belongs to another stream.
            pub(crate) fn check(&self, tensor: &'static str, device: &Device) -> Result<()> {
                match self.owner {
                    Some(owner) if owner != device.stream_id() => Err(Error::Argument {
                        tensor,
                        why: "its buffer belongs to another device or stream than the call",
                    }),
                    _ => Ok(()),
                }
            }
        }

        len!($view<'_, P>);
    };
}

view!(View);
view!(ViewMut);

impl<P> ViewMut<'_, P> {
    /// Borrows the same memory for reading.
    #[must_use]
    pub fn as_view(&self) -> View<'_, P> {
        View { ptr: self.ptr, len: self.len, owner: self.owner, memory: PhantomData }
    }

    /// Borrows the same memory for writing, for a shorter time.
    #[must_use]
    pub fn reborrow(&mut self) -> ViewMut<'_, P> {
        ViewMut { ptr: self.ptr, len: self.len, owner: self.owner, memory: PhantomData }
    }
}
