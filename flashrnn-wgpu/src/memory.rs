//! Device memory: our own ([`Buffer`]), and parts of it or of the caller's ([`View`], [`ViewMut`]).

use std::marker::PhantomData;
use std::ops::{Deref, Range};
use std::sync::Mutex;

use flashrnn_core::{Error, Len, Result};

use crate::device::{Device, lock};

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

/// Memory that a plan's calls work in, call after call: making it anew takes a driver longer than many a call runs.
#[derive(Default)]
pub(crate) struct Pool(Mutex<Vec<wgpu::Buffer>>);

impl Pool {
    /// Memory of so many words, of which nobody knows what they hold. What the call that has it enqueues goes before what the next one
    /// does.
    pub fn words(&self, device: &Device, words: usize) -> Result<Scratch<'_>> {
        let mut free = lock(&self.0);
        let fits = |buffer: &wgpu::Buffer| buffer.size() / 4 == words.next_multiple_of(4).max(4) as u64;
        if let Some(i) = free.iter().position(fits) {
            return Ok(Scratch { buffer: free.swap_remove(i), pool: self });
        }
        drop(free);
        Ok(Scratch { buffer: device.alloc::<u32>(words)?.buffer, pool: self })
    }
}

/// A buffer of a [`Pool`], which goes back to it.
pub(crate) struct Scratch<'a> {
    buffer: wgpu::Buffer,
    pool: &'a Pool,
}

impl Deref for Scratch<'_> {
    type Target = wgpu::Buffer;

    fn deref(&self) -> &wgpu::Buffer {
        &self.buffer
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        lock(&self.pool.0).push(self.buffer.clone());
    }
}
