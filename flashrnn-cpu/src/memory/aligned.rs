//! Buffers that begin at a cache line, and fallible allocation.

use std::marker::PhantomData;

use flashrnn_core::{Error, Result};

/// The size of a cache line in bytes.
pub(crate) const CACHE_LINE: usize = 64;

/// A zero-initialised buffer that begins at a cache line.
pub(crate) struct Aligned<S> {
    lines: Vec<Line>,
    len: usize,
    element: PhantomData<S>,
}

#[derive(Clone, Copy, bytemuck::Zeroable)]
#[repr(align(64))]
struct Line(#[allow(dead_code)] [u8; CACHE_LINE]);

impl<S: bytemuck::Pod> Aligned<S> {
    /// Allocates `len` zeros. The system provides the pages of a large buffer when they are first
    /// touched.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if the allocation fails.
    pub fn new(len: usize) -> Result<Self> {
        let bytes = len.saturating_mul(size_of::<S>());
        let lines = bytemuck::allocation::try_zeroed_vec(bytes.div_ceil(CACHE_LINE));
        let lines = lines.map_err(|()| Error::OutOfMemory { bytes })?;
        Ok(Self { lines, len, element: PhantomData })
    }

    /// Allocates memory for `len` elements without touching it, so that [`Reserved::zeroed`] need
    /// not allocate.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if the allocation fails.
    pub fn reserve(len: usize) -> Result<Reserved<S>> {
        let bytes = len.saturating_mul(size_of::<S>());
        let lines = try_with_capacity(bytes.div_ceil(CACHE_LINE))?;
        Ok(Reserved(Self { lines, len, element: PhantomData }))
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn as_slice(&self) -> &[S] {
        // SAFETY: the lines hold at least `len` elements, all bytes are initialised, and any bytes
        // are a valid S.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [S] {
        // SAFETY: as in `as_slice`; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

/// Allocated but untouched memory of an [`Aligned`] buffer.
pub(crate) struct Reserved<S>(Aligned<S>);

impl<S: bytemuck::Pod> Reserved<S> {
    /// Zeroes the memory. Does not allocate.
    pub fn zeroed(self) -> Aligned<S> {
        let Self(mut aligned) = self;
        let lines = (aligned.len * size_of::<S>()).div_ceil(CACHE_LINE);
        aligned.lines.resize(lines, Line([0; CACHE_LINE]));
        aligned
    }
}

/// Returns a vector of `len` copies of `value`.
///
/// # Errors
/// [`Error::OutOfMemory`] if the allocation fails.
pub(crate) fn try_filled<P: Copy>(value: P, len: usize) -> Result<Vec<P>> {
    let mut filled = try_with_capacity(len)?;
    filled.resize(len, value);
    Ok(filled)
}

fn try_with_capacity<P>(len: usize) -> Result<Vec<P>> {
    let mut empty = Vec::new();
    let bytes = len.saturating_mul(size_of::<P>());
    empty.try_reserve_exact(len).map_err(|_| Error::OutOfMemory { bytes })?;
    Ok(empty)
}
