//! Device memory: buffers of this crate ([`Buffer`]), and views of them or of the caller's buffers
//! ([`View`], [`ViewMut`]).

pub(crate) mod binding;
pub(crate) mod operands;
pub(crate) mod scratch;
mod transfer;

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use flashrnn_core::{Error, Len, Result};

/// Identifies a device. wgpu's own comparison considers devices of different instances equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceId(u64);

impl DeviceId {
    /// Returns an id that no other device has.
    pub fn unique() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Owns device memory for `len` elements, padded to a multiple of 16 bytes. It belongs to the
/// [`Wgpu`](crate::Wgpu) that made it and to its clones; calls on other devices refuse it.
pub struct Buffer<P> {
    pub(crate) buffer: wgpu::Buffer,
    len: usize,
    device: DeviceId,
    element: PhantomData<fn() -> P>,
}

impl<P> Buffer<P> {
    pub(crate) fn new(buffer: wgpu::Buffer, len: usize, device: DeviceId) -> Self {
        Self { buffer, len, device, element: PhantomData }
    }

    /// Borrows the whole buffer for reading.
    #[must_use]
    pub fn view(&self) -> View<'_, P> {
        View {
            buffer: &self.buffer,
            first: 0,
            len: self.len,
            device: Some(self.device),
            element: PhantomData,
        }
    }

    /// Borrows the whole buffer for writing.
    #[must_use]
    pub fn view_mut(&mut self) -> ViewMut<'_, P> {
        ViewMut(self.view())
    }
}

impl<P> fmt::Debug for Buffer<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Borrows device memory for reading.
///
/// wgpu does not let a kernel read one part of a buffer and write another. Within one call, the
/// tensors that are read, the tensors that are written and the workspace must therefore be in
/// different buffers, and tensors that are written must not overlap. Calls check both and return
/// [`Error::Argument`].
pub struct View<'a, P> {
    pub(crate) buffer: &'a wgpu::Buffer,
    /// Index of the first element in the buffer.
    pub(crate) first: usize,
    pub(crate) len: usize,
    /// Device of the buffer. `None` for the caller's buffers, whose device wgpu does not report.
    pub(crate) device: Option<DeviceId>,
    element: PhantomData<fn() -> P>,
}

impl<P> Clone for View<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P> Copy for View<'_, P> {}

/// The usages that a buffer must have to be read.
const READ: wgpu::BufferUsages = wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_SRC);

impl<'a, P> View<'a, P> {
    /// Borrows `len` elements of the caller's buffer, beginning with element `first`. The buffer
    /// must be on the device that calls run on; wgpu panics if it belongs to another instance.
    ///
    /// # Errors
    /// [`Error::Shape`] if the buffer is too small; [`Error::Argument`] if its usages lack
    /// `STORAGE` or `COPY_SRC`, or its size is not a multiple of 4 bytes.
    pub fn of(buffer: &'a wgpu::Buffer, first: usize, len: usize) -> Result<Self> {
        let wrong = |why| Err(Error::Argument { tensor: "buffer", why });
        if !buffer.usage().contains(READ) {
            return wrong("its usages must include STORAGE and COPY_SRC");
        }
        if !buffer.size().is_multiple_of(4) {
            return wrong("its size must be a multiple of 4 bytes");
        }
        let room = usize::try_from(buffer.size()).unwrap_or(usize::MAX) / size_of::<P>().max(1);
        match first.checked_add(len) {
            Some(end) if end <= room => {
                Ok(Self { buffer, first, len, device: None, element: PhantomData })
            }
            _ => Err(Error::Shape { tensor: "buffer", got: vec![room], want: vec![first, len] }),
        }
    }

    /// Borrows the elements in `range` of this view.
    ///
    /// # Errors
    /// [`Error::Shape`] if the range exceeds the view.
    pub fn slice(self, range: Range<usize>) -> Result<Self> {
        if range.start <= range.end && range.end <= self.len {
            Ok(Self { first: self.first + range.start, len: range.end - range.start, ..self })
        } else {
            Err(Error::Shape {
                tensor: "view",
                got: vec![self.len],
                want: vec![range.start, range.end],
            })
        }
    }

    /// Returns the range of the view in its buffer, in bytes.
    pub(crate) fn bytes(&self) -> Range<u64> {
        let size = size_of::<P>() as u64;
        self.first as u64 * size..(self.first + self.len) as u64 * size
    }
}

impl<P> Len for View<'_, P> {
    fn len(&self) -> usize {
        self.len
    }
}

impl<P> fmt::Debug for View<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View")
            .field("first", &self.first)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// Borrows device memory for writing. The rules of [`View`] apply.
pub struct ViewMut<'a, P>(pub(crate) View<'a, P>);

impl<'a, P> ViewMut<'a, P> {
    /// Borrows elements of the caller's buffer for writing, as [`View::of`] does for reading.
    ///
    /// # Errors
    /// Same as [`View::of`], and [`Error::Argument`] if the buffer's usages lack `COPY_DST`.
    pub fn of(buffer: &'a wgpu::Buffer, first: usize, len: usize) -> Result<Self> {
        if !buffer.usage().contains(wgpu::BufferUsages::COPY_DST) {
            return Err(Error::Argument {
                tensor: "buffer",
                why: "its usages must include COPY_DST",
            });
        }
        View::of(buffer, first, len).map(Self)
    }

    /// Borrows the elements in `range` of this view.
    ///
    /// # Errors
    /// [`Error::Shape`] if the range exceeds the view.
    pub fn slice(self, range: Range<usize>) -> Result<Self> {
        self.0.slice(range).map(Self)
    }
}

impl<P> Len for ViewMut<'_, P> {
    fn len(&self) -> usize {
        self.0.len
    }
}

impl<P> fmt::Debug for ViewMut<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ViewMut").field(&self.0).finish()
    }
}
