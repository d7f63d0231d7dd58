//! Device memory: our own ([`Buffer`]), and parts of it or of the caller's ([`View`], [`ViewMut`]).

pub(crate) mod operands;
pub(crate) mod scratch;

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use flashrnn_core::{Error, Len, Result};

use crate::device::DeviceId;

/// Owned device memory for `len` elements, with room to a multiple of 16 bytes. It belongs to the
/// [`Wgpu`](crate::Wgpu) that made it and to its clones; calls of others refuse it.
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

/// Device memory borrowed for reading.
///
/// wgpu lets no kernel read one part of a buffer and write another. So in one call, what is read,
/// what is written and the workspace must lie in different buffers, and what is written must not
/// overlap. Calls check it ([`Error::Argument`]).
pub struct View<'a, P> {
    pub(crate) buffer: &'a wgpu::Buffer,
    /// The first element.
    pub(crate) first: usize,
    pub(crate) len: usize,
    /// Whose the buffer is; `None` where somebody else made it, for wgpu does not tell.
    pub(crate) device: Option<DeviceId>,
    element: PhantomData<fn() -> P>,
}

impl<P> Clone for View<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P> Copy for View<'_, P> {}

/// What a buffer that is read must allow.
const READ: wgpu::BufferUsages = wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_SRC);

impl<'a, P> View<'a, P> {
    /// Views `len` elements, from element `first` on, of a buffer that somebody else made, on the
    /// very device that calls run on: wgpu panics where a buffer of another instance is used.
    ///
    /// # Errors
    /// [`Error::Shape`] where the buffer is too small, [`Error::Argument`] where its usages lack
    /// `STORAGE` or `COPY_SRC`, or its size is no multiple of 4 bytes.
    pub fn of(buffer: &'a wgpu::Buffer, first: usize, len: usize) -> Result<Self> {
        let wrong = |why| Err(Error::Argument { tensor: "buffer", why });
        if !buffer.usage().contains(READ) {
            return wrong("its usages must hold STORAGE and COPY_SRC");
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

    /// Views the elements in `range`.
    ///
    /// # Errors
    /// [`Error::Shape`] where they are not all in the view.
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

    /// The bytes of the buffer that are viewed.
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

/// Device memory borrowed for writing. What [`View`] says of buffers holds for it too.
pub struct ViewMut<'a, P>(pub(crate) View<'a, P>);

impl<'a, P> ViewMut<'a, P> {
    /// As [`View::of`], for writing.
    ///
    /// # Errors
    /// As [`View::of`], and [`Error::Argument`] where the buffer's usages lack `COPY_DST`.
    pub fn of(buffer: &'a wgpu::Buffer, first: usize, len: usize) -> Result<Self> {
        if !buffer.usage().contains(wgpu::BufferUsages::COPY_DST) {
            return Err(Error::Argument { tensor: "buffer", why: "its usages must hold COPY_DST" });
        }
        View::of(buffer, first, len).map(Self)
    }

    /// Views the elements in `range`.
    ///
    /// # Errors
    /// [`Error::Shape`] where they are not all in the view.
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
