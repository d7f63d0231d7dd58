//! The scratch memory of a call: its layout, a view of it, and the buffers kept between calls.

use std::marker::PhantomData;
use std::sync::{Arc, Mutex};

use bytemuck::Pod;
use flashrnn_core::Result;

use super::aligned::{Aligned, CACHE_LINE};
use super::lock::lock;
use super::shared::in_bounds;

/// The place of one array in a workspace.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Span {
    start: usize,
    bytes: usize,
}

/// Places arrays in a workspace, each at the beginning of a cache line. Sums saturate. A workspace
/// larger than the address space is reported when its allocation fails.
#[derive(Default)]
pub(crate) struct WorkspaceLayout {
    end: usize,
    bytes: usize,
}

impl WorkspaceLayout {
    /// Adds an array of `len` values of `P`.
    pub fn add<P>(&mut self, len: usize) -> Span {
        const { assert!(align_of::<P>() <= CACHE_LINE) }
        let span = Span { start: self.end, bytes: len.saturating_mul(size_of::<P>()) };
        let lines = span.bytes.div_ceil(CACHE_LINE);
        self.end = self.end.saturating_add(lines.saturating_mul(CACHE_LINE));
        self.bytes = self.bytes.max(self.end);
        span
    }

    /// Returns the offset of the next array.
    pub fn end(&self) -> usize {
        self.end
    }

    /// Places further arrays from offset `end`, over arrays that are not in use at the same time.
    pub fn rewind(&mut self, end: usize) {
        self.end = end;
    }

    /// Returns the number of bytes that a workspace of any alignment needs.
    pub fn bytes(&self) -> usize {
        self.bytes.saturating_add(CACHE_LINE - 1)
    }
}

/// The workspace of one call.
#[derive(Clone, Copy)]
pub(crate) struct WorkspaceView<'a> {
    start: *mut u8,
    len: usize,
    lifetime: PhantomData<&'a mut [u8]>,
}

impl<'a> WorkspaceView<'a> {
    /// Views a workspace from its first cache line on.
    fn new(workspace: &'a mut [u8]) -> Self {
        let skipped = workspace.as_ptr().align_offset(CACHE_LINE).min(workspace.len());
        let workspace = &mut workspace[skipped..];
        Self { start: workspace.as_mut_ptr(), len: workspace.len(), lifetime: PhantomData }
    }

    /// Returns the array at `span` with unspecified contents.
    ///
    /// # Safety
    /// Nothing else uses the span during the slice's lifetime.
    pub unsafe fn slice<P: Pod>(self, span: Span) -> &'a mut [P] {
        assert!(in_bounds(span.start, span.bytes, self.len));
        // SAFETY: within bounds; aligned, because the start and all spans are; any bytes are a
        // valid P; exclusive by the caller's guarantee.
        unsafe {
            let start = self.start.add(span.start).cast();
            std::slice::from_raw_parts_mut(start, span.bytes / size_of::<P>())
        }
    }

    /// Writes `value(i)` to every element of the array at `span`, and returns the array. The values
    /// are never dropped.
    ///
    /// # Safety
    /// Same as for [`Self::slice`]; the span was added for values of the size of `P`.
    pub unsafe fn fill<P>(self, span: Span, mut value: impl FnMut(usize) -> P) -> &'a mut [P] {
        const { assert!(!std::mem::needs_drop::<P>() && align_of::<P>() <= CACHE_LINE) }
        assert!(in_bounds(span.start, span.bytes, self.len));
        let len = span.bytes / size_of::<P>();
        // SAFETY: within bounds and aligned, as in `slice`; exclusive by the caller's guarantee;
        // every element is written before it is read.
        unsafe {
            let start: *mut P = self.start.add(span.start).cast();
            for i in 0..len {
                start.add(i).write(value(i));
            }
            std::slice::from_raw_parts_mut(start, len)
        }
    }
}

/// Keeps the workspaces of calls whose caller supplies none.
#[derive(Clone, Default)]
pub(crate) struct WorkspacePool(Arc<Mutex<Vec<Aligned<u8>>>>);

impl WorkspacePool {
    /// Calls `run` with the caller's workspace if there is one, or else with one of at least
    /// `bytes` bytes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](flashrnn_core::Error::OutOfMemory) if a workspace cannot be
    /// allocated.
    pub fn with<A>(
        &self,
        supplied: Option<&mut [u8]>,
        bytes: usize,
        run: impl FnOnce(WorkspaceView<'_>) -> A,
    ) -> Result<A> {
        if let Some(workspace) = supplied {
            return Ok(run(WorkspaceView::new(workspace)));
        }
        let mut workspace = self.take(bytes)?;
        let result = run(WorkspaceView::new(workspace.as_mut_slice()));
        lock(&self.0).push(workspace);
        Ok(result)
    }

    /// Takes the smallest kept workspace that is large enough. If there is none, replaces the
    /// largest by a new one.
    fn take(&self, bytes: usize) -> Result<Aligned<u8>> {
        {
            let mut kept = lock(&self.0);
            let fitting = (0..kept.len()).filter(|&i| kept[i].len() >= bytes);
            if let Some(i) = fitting.min_by_key(|&i| kept[i].len()) {
                return Ok(kept.swap_remove(i));
            }
            if let Some(i) = (0..kept.len()).max_by_key(|&i| kept[i].len()) {
                kept.swap_remove(i);
            }
        }
        Aligned::new(bytes)
    }

    /// Frees all workspaces that no call is using.
    pub fn trim(&self) {
        lock(&self.0).clear();
    }
}

impl std::fmt::Debug for WorkspacePool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(lock(&self.0).iter().map(Aligned::len)).finish()
    }
}
