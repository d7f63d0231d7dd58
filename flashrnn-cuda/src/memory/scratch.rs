//! Scratch memory of a call: one allocation, from the caller or the pool, divided into buffers.

use std::sync::Arc;

use flashrnn_core::{Error, Result, Workspace};

use crate::call::Address;
use crate::device::Device;
use crate::memory::{Buffer, ViewMut};

/// Alignment in bytes of a workspace and of every buffer in it.
const ALIGN: usize = 256;

/// Allocates buffers from the front of a piece of memory.
pub(crate) struct Bump {
    base: Address,
    used: usize,
    peak: usize,
}

impl Bump {
    fn new(base: Address) -> Self {
        Self { base, used: 0, peak: 0 }
    }

    /// Allocates a buffer of `len` elements of `P` and returns its address, or 0 if `len` is 0.
    pub(crate) fn take<P>(&mut self, len: usize) -> Address {
        if len == 0 {
            return 0;
        }
        let address = self.base.saturating_add(self.used as Address);
        let bytes = len
            .saturating_mul(size_of::<P>())
            .checked_next_multiple_of(ALIGN)
            .unwrap_or(usize::MAX);
        self.used = self.used.saturating_add(bytes);
        self.peak = self.peak.max(self.used);
        address
    }

    /// Allocates the buffers of `phase`. The next phase reuses their memory.
    pub(crate) fn phase<S>(&mut self, phase: impl FnOnce(&mut Self) -> S) -> S {
        let used = self.used;
        let buffers = phase(self);
        self.used = used;
        buffers
    }
}

/// The scratch buffers of a call. Dropping them frees memory from the pool, in stream order; the
/// caller's workspace stays.
pub(crate) struct Scratch<S> {
    pub buffers: S,
    _memory: Option<Buffer<u8>>,
}

impl<S> Scratch<S> {
    /// Allocates the buffers of `layout` from `workspace` or, if there is none, from the pool. The
    /// caller has checked the size of `workspace`.
    ///
    /// # Errors
    /// [`Error::Argument`] if `workspace` is not aligned, [`Error::OutOfMemory`] if the GPU has too
    /// little free memory.
    pub(crate) fn new(
        device: &Arc<Device>,
        workspace: Option<&ViewMut<'_, u8>>,
        layout: impl Fn(&mut Bump) -> S,
    ) -> Result<Self> {
        if let Some(workspace) = workspace {
            if !workspace.is_empty() && !workspace.ptr().is_multiple_of(ALIGN as Address) {
                let why = "its address must be a multiple of 256";
                return Err(Error::Argument { tensor: "workspace", why });
            }
            return Ok(Self { buffers: layout(&mut Bump::new(workspace.ptr())), _memory: None });
        }
        let memory = device.alloc::<u8>(bytes(&layout))?;
        Ok(Self { buffers: layout(&mut Bump::new(memory.ptr())), _memory: Some(memory) })
    }
}

/// Returns the workspace that the buffers of `layout` need.
pub(crate) fn workspace<S>(layout: impl Fn(&mut Bump) -> S) -> Workspace {
    match bytes(layout) {
        0 => Workspace::NONE,
        bytes => Workspace { bytes, align: ALIGN },
    }
}

/// Returns the bytes that the buffers of `layout` need.
fn bytes<S>(layout: impl Fn(&mut Bump) -> S) -> usize {
    let mut bump = Bump::new(ALIGN as Address);
    layout(&mut bump);
    bump.peak
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_buffers_of_different_phases_overlap() {
        let layout = |bump: &mut Bump| {
            let first = bump.take::<f32>(1);
            let (a, b) = bump.phase(|bump| (bump.take::<u8>(257), bump.take::<u64>(1)));
            let later = bump.phase(|bump| bump.take::<u8>(3));
            [first, a, b, later, bump.take::<u8>(0)]
        };
        assert_eq!(layout(&mut Bump::new(4096)), [4096, 4352, 4864, 4352, 0]);
        assert_eq!(bytes(layout), 1024);
    }

    #[test]
    fn sizes_beyond_the_address_space_stay_too_large_to_allocate() {
        assert_eq!(
            bytes(|bump| [bump.take::<u64>(usize::MAX / 4), bump.take::<u8>(1)]),
            usize::MAX
        );
        assert_eq!(workspace(|bump| bump.take::<u8>(0)), Workspace::NONE);
    }
}
