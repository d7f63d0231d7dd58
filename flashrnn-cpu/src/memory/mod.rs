//! Aligned memory, slices that several threads write at disjoint places, and the parts of a
//! workspace.

use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flashrnn_core::{Error, Result};

/// What the address of every span is a multiple of: the bytes of a cache line.
pub(crate) const ALIGN: usize = 64;

/// Room for elements at addresses that are multiples of a cache line, zeroed.
pub(crate) struct Aligned<S> {
    lines: Vec<Line>,
    len: usize,
    element: PhantomData<S>,
}

#[derive(Clone, Copy, bytemuck::Zeroable)]
#[repr(align(64))]
struct Line(#[allow(dead_code)] [u8; ALIGN]);

impl<S: bytemuck::Pod> Aligned<S> {
    /// Allocates room for `len` elements, which takes up no memory before it is touched if it is
    /// large.
    pub fn new(len: usize) -> Result<Self> {
        let bytes = len.saturating_mul(size_of::<S>());
        let lines = bytemuck::allocation::try_zeroed_vec(bytes.div_ceil(ALIGN));
        Ok(Self {
            lines: lines.map_err(|()| Error::OutOfMemory { bytes })?,
            len,
            element: PhantomData,
        })
    }

    /// Allocates memory that [`Reserved::zeroed`] makes of use, and does not touch it before.
    pub fn reserve(len: usize) -> Result<Reserved<S>> {
        let bytes = len.saturating_mul(size_of::<S>());
        let mut lines = Vec::new();
        lines.try_reserve_exact(bytes.div_ceil(ALIGN)).map_err(|_| Error::OutOfMemory { bytes })?;
        Ok(Reserved(Self { lines, len, element: PhantomData }))
    }

    pub fn as_slice(&self) -> &[S] {
        // SAFETY: the lines hold at least `len` elements, all bytes are initialised, and any bytes
        // make an S.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [S] {
        // SAFETY: as above; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

/// Memory set aside for an [`Aligned`].
pub(crate) struct Reserved<S>(Aligned<S>);

impl<S: bytemuck::Pod> Reserved<S> {
    /// Zeroes the memory, without allocating any.
    pub fn zeroed(self) -> Aligned<S> {
        let Self(mut aligned) = self;
        aligned.lines.resize((aligned.len * size_of::<S>()).div_ceil(ALIGN), Line([0; ALIGN]));
        aligned
    }
}

/// A vector of `len` copies of `value`, or the error that there is no memory for it.
pub(crate) fn filled<P: Copy>(value: P, len: usize) -> Result<Vec<P>> {
    let mut v = Vec::new();
    v.try_reserve_exact(len)
        .map_err(|_| Error::OutOfMemory { bytes: len.saturating_mul(size_of::<P>()) })?;
    v.resize(len, value);
    Ok(v)
}

/// Locks a mutex whose data no panic leaves half changed.
pub(crate) fn lock<A>(mutex: &Mutex<A>) -> MutexGuard<'_, A> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The part of a workspace that holds one array.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Span {
    start: usize,
    bytes: usize,
}

/// Divides a workspace into spans, each from the beginning of a cache line on. Sums saturate: a
/// workspace that would not fit the address space can't be had.
#[derive(Default)]
pub(crate) struct SpanLayout {
    end: usize,
    bytes: usize,
}

impl SpanLayout {
    /// Adds a span for `len` values of `P`.
    pub fn add<P>(&mut self, len: usize) -> Span {
        const { assert!(align_of::<P>() <= ALIGN) }
        let span = Span { start: self.end, bytes: len.saturating_mul(size_of::<P>()) };
        self.end = self.end.saturating_add(span.bytes.div_ceil(ALIGN).saturating_mul(ALIGN));
        self.bytes = self.bytes.max(self.end);
        span
    }

    /// Where the next span starts.
    pub fn end(&self) -> usize {
        self.end
    }

    /// Lets further spans overlap those from `end` on, which are not used at the same time.
    pub fn back_to(&mut self, end: usize) {
        self.end = end;
    }

    /// The bytes of the whole workspace, which may begin at any address.
    pub fn bytes(&self) -> usize {
        self.bytes.saturating_add(ALIGN - 1)
    }
}

/// The workspace of one call.
#[derive(Clone, Copy)]
pub(crate) struct Memory<'a> {
    start: *mut u8,
    len: usize,
    lifetime: PhantomData<&'a mut [u8]>,
}

impl<'a> Memory<'a> {
    /// The workspace from its first cache line on.
    fn new(workspace: &'a mut [u8]) -> Self {
        let skipped = workspace.as_ptr().align_offset(ALIGN).min(workspace.len());
        let workspace = &mut workspace[skipped..];
        Self { start: workspace.as_mut_ptr(), len: workspace.len(), lifetime: PhantomData }
    }

    /// The numbers of a span, with whatever they hold.
    ///
    /// # Safety
    /// Nobody else uses the span while the slice lives.
    pub unsafe fn numbers<P: bytemuck::Pod>(self, span: Span) -> &'a mut [P] {
        assert!(inside(span.start, span.bytes, self.len));
        // SAFETY: within bounds; aligned, as the start and all spans are; any bytes make a P;
        // exclusive by the caller's promise.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.start.add(span.start).cast(),
                span.bytes / size_of::<P>(),
            )
        }
    }

    /// Writes `value(i)` to every place of a span, and returns it. The values are never dropped.
    ///
    /// # Safety
    /// As for [`Self::numbers`]; the span was added for values of the size of `P`.
    pub unsafe fn fill<P>(self, span: Span, mut value: impl FnMut(usize) -> P) -> &'a mut [P] {
        const { assert!(!std::mem::needs_drop::<P>() && align_of::<P>() <= ALIGN) }
        assert!(inside(span.start, span.bytes, self.len));
        let len = span.bytes / size_of::<P>();
        // SAFETY: within bounds and aligned, as above; exclusive by the caller's promise; all of it
        // is written before it is read.
        unsafe {
            let start: *mut P = self.start.add(span.start).cast();
            for i in 0..len {
                start.add(i).write(value(i));
            }
            std::slice::from_raw_parts_mut(start, len)
        }
    }
}

/// Workspaces of calls that were given none, kept for later calls.
#[derive(Clone, Default)]
pub(crate) struct Workspaces(Arc<Mutex<Vec<Aligned<u8>>>>);

impl Workspaces {
    /// Calls `run` with the workspace that the caller gives, or with one of `bytes` bytes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]
    pub fn with<A>(
        &self,
        given: Option<&mut [u8]>,
        bytes: usize,
        run: impl FnOnce(Memory<'_>) -> A,
    ) -> Result<A> {
        if let Some(workspace) = given {
            return Ok(run(Memory::new(workspace)));
        }
        let mut workspace = self.take(bytes)?;
        let result = run(Memory::new(workspace.as_mut_slice()));
        lock(&self.0).push(workspace);
        Ok(result)
    }

    /// The smallest one kept that is large enough; else a new one, in place of the largest.
    fn take(&self, bytes: usize) -> Result<Aligned<u8>> {
        {
            let mut kept = lock(&self.0);
            let enough =
                (0..kept.len()).filter(|&i| kept[i].len >= bytes).min_by_key(|&i| kept[i].len);
            if let Some(i) = enough {
                return Ok(kept.swap_remove(i));
            }
            if let Some(i) = (0..kept.len()).max_by_key(|&i| kept[i].len) {
                kept.swap_remove(i);
            }
        }
        Aligned::new(bytes)
    }

    /// Gives all that no call uses now back to the system.
    pub fn trim(&self) {
        lock(&self.0).clear();
    }
}

impl std::fmt::Debug for Workspaces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(lock(&self.0).iter().map(|kept| kept.len)).finish()
    }
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

// SAFETY: dereferencing is unsafe, and whoever does it promises that no two threads touch an
// element at once.
unsafe impl<P: Send> Send for Shared<'_, P> {}
// SAFETY: as above.
unsafe impl<P: Send> Sync for Shared<'_, P> {}

impl<'a, P> Shared<'a, P> {
    pub fn new(slice: &'a mut [P]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), lifetime: PhantomData }
    }

    /// The `n` elements from `i` on.
    pub fn part(self, i: usize, n: usize) -> Self {
        assert!(inside(i, n, self.len));
        Self { start: self.start.wrapping_add(i), len: n, lifetime: PhantomData }
    }

    /// The address of the `n` elements from `i` on.
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

/// The address of the `n` elements from `i` on.
#[inline(always)]
pub(crate) fn at<P>(slice: &[P], i: usize, n: usize) -> *const P {
    check(i, n, slice.len());
    slice.as_ptr().wrapping_add(i)
}

/// Whether `n` elements from `i` on are within `len` elements.
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
