//! Scratch memory of calls: the caller's workspace, or a buffer that the plan keeps for its next
//! calls.

use std::sync::Mutex;

use flashrnn_core::{Error, Result, Workspace};
use flashrnn_gpu::lock;

use crate::device::Device;
use crate::kernels::Bound;
use crate::memory::ViewMut;

/// Where a workspace must begin, and where each region in one begins: the largest alignment of a
/// binding, in bytes.
const ALIGN: usize = 256;

/// Returns the size and alignment of a workspace with room for regions of these bytes, one after
/// another.
pub(crate) fn workspace(regions: &[usize]) -> Workspace {
    let bytes = regions.iter().fold(0usize, |sum, &bytes| sum.saturating_add(room(bytes)));
    Workspace { bytes, align: ALIGN }
}

/// Bytes that a region takes: at least [`ALIGN`], so that an empty one can be bound too.
fn room(bytes: usize) -> usize {
    bytes.max(1).next_multiple_of(ALIGN)
}

/// Memory that a plan keeps for its calls: allocating it can take a driver longer than a whole
/// call.
#[derive(Default)]
pub(crate) struct Pool {
    /// Buffers that no call uses now.
    free: Mutex<Vec<wgpu::Buffer>>,
    /// The state before and after [`Plan::step`](flashrnn_core::Plan::step). Whoever has it locked
    /// enqueues before the next one does.
    pub step: Mutex<Option<wgpu::Buffer>>,
}

impl Pool {
    /// Takes uninitialised memory of `bytes` bytes. A call enqueues all its work before it gives
    /// the memory back, so the work of the next one that takes it runs later.
    pub fn take(&self, device: &Device, bytes: usize) -> Result<Scratch<'_>> {
        let mut free = lock(&self.free);
        let found = free.iter().position(|buffer| buffer.size() == bytes as u64);
        let found = found.map(|i| free.swap_remove(i));
        drop(free);
        let buffer = found.map_or_else(|| device.memory(bytes), Ok)?;
        Ok(Scratch { buffer, first: 0, pool: Some(self) })
    }

    /// Drops the memory that no call uses now.
    pub fn trim(&self) {
        lock(&self.free).clear();
        *lock(&self.step) = None;
    }
}

/// The scratch memory of a call. A pool gets its own back.
pub(crate) struct Scratch<'a> {
    buffer: wgpu::Buffer,
    /// Where it begins in the buffer, in bytes.
    first: u64,
    pool: Option<&'a Pool>,
}

impl<'a> Scratch<'a> {
    /// Wraps the caller's workspace, whose size core has checked.
    ///
    /// # Errors
    /// [`Error::Argument`] where it does not begin at a multiple of [`ALIGN`].
    pub fn given(ViewMut(view): &ViewMut<'a, u8>) -> Result<Self> {
        if !view.first.is_multiple_of(ALIGN) {
            return Err(Error::Argument {
                tensor: "workspace",
                why: "must begin at a multiple of 256 bytes",
            });
        }
        Ok(Self { buffer: view.buffer.clone(), first: view.first as u64, pool: None })
    }

    /// Returns the regions that [`workspace`] made room for.
    pub fn regions<const N: usize>(&self, bytes: [usize; N]) -> [Bound<'_>; N] {
        let mut first = self.first;
        bytes.map(|bytes| {
            let region = Bound::part(&self.buffer, first, bytes as u64);
            first += room(bytes) as u64;
            region
        })
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        if let Some(pool) = self.pool {
            lock(&pool.free).push(self.buffer.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_begin_where_they_can_be_bound() {
        assert_eq!(
            workspace(&[0, 1, 256, 257]),
            Workspace { bytes: 256 * (1 + 1 + 1 + 2), align: 256 }
        );
    }
}
