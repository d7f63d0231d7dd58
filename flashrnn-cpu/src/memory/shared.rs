//! Slices that several threads write in disjoint ranges.

use std::marker::PhantomData;

/// A mutable slice that several threads may hold. Each writes its own range.
pub(crate) struct SharedSlice<'a, P> {
    start: *mut P,
    len: usize,
    lifetime: PhantomData<&'a mut [P]>,
}

impl<P> Clone for SharedSlice<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P> Copy for SharedSlice<'_, P> {}

// SAFETY: dereferencing is unsafe, and its callers guarantee that no two threads access an element
// at once.
unsafe impl<P: Send> Send for SharedSlice<'_, P> {}
// SAFETY: as above.
unsafe impl<P: Send> Sync for SharedSlice<'_, P> {}

impl<'a, P> SharedSlice<'a, P> {
    pub fn new(slice: &'a mut [P]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), lifetime: PhantomData }
    }

    /// Returns the `n` elements that start at `i`, still shared.
    ///
    /// # Panics
    /// If these elements are out of bounds.
    pub fn part(self, i: usize, n: usize) -> Self {
        assert!(in_bounds(i, n, self.len));
        Self { start: self.start.wrapping_add(i), len: n, lifetime: PhantomData }
    }

    /// Returns the address of element `i`, from which `n` elements may be accessed. Debug builds
    /// check the bounds.
    #[inline(always)]
    pub fn at(self, i: usize, n: usize) -> *mut P {
        debug_check(i, n, self.len);
        self.start.wrapping_add(i)
    }

    /// Returns the `n` elements that start at `i`.
    ///
    /// # Safety
    /// No other thread accesses these elements during the slice's lifetime.
    ///
    /// # Panics
    /// If these elements are out of bounds.
    #[inline(always)]
    pub unsafe fn slice(self, i: usize, n: usize) -> &'a mut [P] {
        assert!(in_bounds(i, n, self.len));
        // SAFETY: within bounds; exclusive by the caller's guarantee.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(i), n) }
    }
}

/// Returns the address of `slice[i]`, from which `n` elements may be read. Debug builds check the
/// bounds.
#[inline(always)]
pub(crate) fn at<P>(slice: &[P], i: usize, n: usize) -> *const P {
    debug_check(i, n, slice.len());
    slice.as_ptr().wrapping_add(i)
}

/// Returns whether the `n` elements that start at `i` are within `len` elements.
#[inline(always)]
pub(super) fn in_bounds(i: usize, n: usize, len: usize) -> bool {
    n <= len && i <= len - n
}

#[inline(always)]
fn debug_check(i: usize, n: usize, len: usize) {
    if cfg!(debug_assertions) && !in_bounds(i, n, len) {
        out_of_bounds(i, n, len);
    }
}

/// Panics out of line: the kernels contain hundreds of checks.
#[cold]
#[inline(never)]
fn out_of_bounds(i: usize, n: usize, len: usize) -> ! {
    panic!("the {n} elements from {i} on are not within {len}")
}
