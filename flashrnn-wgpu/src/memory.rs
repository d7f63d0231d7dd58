//! Device memory: our own ([`Buffer`]), and parts of it or of the caller's ([`View`], [`ViewMut`]).

use std::marker::PhantomData;
use std::ops::Range;

use flashrnn_core::{Error, Len, Result};

/// Owned device memory for `len` elements, with room to a multiple of 16 bytes.
pub struct Buffer<P> {
    pub(crate) buffer: wgpu::Buffer,
    pub(crate) len: usize,
    element: PhantomData<fn() -> P>,
}

impl<P> Buffer<P> {
    pub(crate) fn new(buffer: wgpu::Buffer, len: usize) -> Self {
        Self { buffer, len, element: PhantomData }
    }

    /// The whole buffer, for reading.
    #[must_use]
    pub fn view(&self) -> View<'_, P> {
        View { buffer: &self.buffer, first: 0, len: self.len, element: PhantomData }
    }

    /// The whole buffer, for writing.
    #[must_use]
    pub fn view_mut(&mut self) -> ViewMut<'_, P> {
        ViewMut(self.view())
    }
}

/// Device memory borrowed for reading.
pub struct View<'a, P> {
    pub(crate) buffer: &'a wgpu::Buffer,
    /// The first element.
    pub(crate) first: usize,
    pub(crate) len: usize,
    element: PhantomData<fn() -> P>,
}

impl<P> Clone for View<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P> Copy for View<'_, P> {}

impl<'a, P> View<'a, P> {
    /// `len` elements of a buffer that somebody else made, from element `first` on. The buffer's usages must hold `STORAGE`,
    /// `COPY_SRC` and, where it is written, `COPY_DST`. No call may read and write parts of one buffer.
    ///
    /// # Errors
    /// [`Error::Shape`] where the buffer is too small.
    pub fn of(buffer: &'a wgpu::Buffer, first: usize, len: usize) -> Result<Self> {
        let room = usize::try_from(buffer.size()).unwrap_or(usize::MAX) / size_of::<P>().max(1);
        match first.checked_add(len) {
            Some(end) if end <= room => Ok(Self { buffer, first, len, element: PhantomData }),
            _ => Err(Error::Shape { tensor: "buffer", got: vec![room], want: vec![first, len] }),
        }
    }

    /// The elements in `range`.
    ///
    /// # Errors
    /// [`Error::Shape`] where they are not all in the view.
    pub fn slice(self, range: Range<usize>) -> Result<Self> {
        if range.start <= range.end && range.end <= self.len {
            Ok(Self { first: self.first + range.start, len: range.end - range.start, ..self })
        } else {
            Err(Error::Shape { tensor: "view", got: vec![self.len], want: vec![range.start, range.end] })
        }
    }
}

impl<P> Len for View<'_, P> {
    fn len(&self) -> usize {
        self.len
    }
}

/// Device memory borrowed for writing.
pub struct ViewMut<'a, P>(pub(crate) View<'a, P>);

impl<'a, P> ViewMut<'a, P> {
    /// As [`View::of`], for writing.
    ///
    /// # Errors
    /// As [`View::of`].
    pub fn of(buffer: &'a wgpu::Buffer, first: usize, len: usize) -> Result<Self> {
        View::of(buffer, first, len).map(Self)
    }

    /// The elements in `range`.
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
