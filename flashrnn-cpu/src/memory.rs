//! Aligned memory, and slices that several threads write at disjoint places.

use std::marker::PhantomData;

use flashrnn_core::{Error, Result};

/// Room for elements at addresses that are multiples of a cache line, zeroed.
pub(crate) struct Aligned<S> {
    lines: Vec<Line>,
    len: usize,
    element: PhantomData<S>,
}

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code)] [u8; 64]);

impl<S: bytemuck::Pod> Aligned<S> {
    pub fn new(len: usize) -> Result<Self> {
        Ok(Self {
            lines: filled(Line([0; 64]), (len * size_of::<S>()).div_ceil(64))?,
            len,
            element: PhantomData,
        })
    }

    pub fn as_slice(&self) -> &[S] {
        // SAFETY: the lines hold at least `len` elements, all bytes are initialised, and any bytes make an S.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [S] {
        // SAFETY: as above; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

/// A vector of `len` copies of `value`, or the error that there is no memory for it.
pub(crate) fn filled<P: Copy>(value: P, len: usize) -> Result<Vec<P>> {
    let mut v = Vec::new();
    v.try_reserve_exact(len).map_err(|_| Error::OutOfMemory { bytes: len.saturating_mul(size_of::<P>()) })?;
    v.resize(len, value);
    Ok(v)
}

/// A mutable slice that may be shared among threads, each of which writes places of its own.
pub(crate) struct Shared<'a, P> {
    start: *mut P,
    len: usize,
    lifetime: PhantomData<&'a mut [P]>,
}

impl<P> Clone for Shared<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P> Copy for Shared<'_, P> {}

// SAFETY: dereferencing is unsafe, and whoever does it promises that no two threads touch an element at once.
unsafe impl<P: Send> Send for Shared<'_, P> {}
// SAFETY: as above.
unsafe impl<P: Send> Sync for Shared<'_, P> {}

impl<'a, P> Shared<'a, P> {
    pub fn new(slice: &'a mut [P]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), lifetime: PhantomData }
    }

    /// The address of element `i`, of which `n` follow.
    #[inline(always)]
    pub fn at(self, i: usize, n: usize) -> *mut P {
        check(i, n, self.len);
        self.start.wrapping_add(i)
    }

    /// Elements `i` to `i + n`.
    ///
    /// # Safety
    /// No other thread touches them while the slice lives.
    #[inline(always)]
    pub unsafe fn slice(self, i: usize, n: usize) -> &'a mut [P] {
        assert!(inside(i, n, self.len));
        // SAFETY: within bounds; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(i), n) }
    }
}

/// The address of element `i`, of which `n` follow.
#[inline(always)]
pub(crate) fn at<P>(slice: &[P], i: usize, n: usize) -> *const P {
    check(i, n, slice.len());
    slice.as_ptr().wrapping_add(i)
}

/// Whether `len` elements have an element `i` of which `n` follow.
#[inline(always)]
fn inside(i: usize, n: usize, len: usize) -> bool {
    n <= len && i <= len - n
}

/// Checks it in debug builds.
#[inline(always)]
fn check(i: usize, n: usize, len: usize) {
    if cfg!(debug_assertions) && !inside(i, n, len) {
        outside(i, n, len);
    }
}

/// Apart from the check, which kernels have by the hundred.
#[cold]
#[inline(never)]
fn outside(i: usize, n: usize, len: usize) -> ! {
    panic!("{i} + {n} of {len}")
}
