//! Scratch memory of calls: the caller's workspace, or a buffer that the plan keeps for its next
//! calls.

use std::sync::{Arc, Mutex, Weak};

use flashrnn_core::{Error, Result};
use flashrnn_gpu::lock;

use crate::device::Device;
use crate::layout::{ALIGN, region_bytes};
use crate::memory::ViewMut;
use crate::memory::binding::Binding;

/// The pools of all plans of a device.
#[derive(Default)]
pub(crate) struct Pools(Mutex<Vec<Weak<Pool>>>);

impl Pools {
    /// Makes a pool for a plan. [`Pools::trim`] includes it as long as the plan exists.
    pub fn pool(&self) -> Arc<Pool> {
        let pool = Arc::new(Pool::default());
        let mut pools = lock(&self.0);
        pools.retain(|pool| pool.strong_count() > 0);
        pools.push(Arc::downgrade(&pool));
        pool
    }

    /// Drops the memory that no call is using, in all pools.
    pub fn trim(&self) {
        for pool in lock(&self.0).iter().filter_map(Weak::upgrade) {
            lock(&pool.free).clear();
            *lock(&pool.step) = None;
        }
    }
}

/// Memory that a plan keeps for its calls, because a driver can take longer to allocate it than to
/// run a call.
#[derive(Default)]
pub(crate) struct Pool {
    /// Buffers that no call is using.
    free: Mutex<Vec<wgpu::Buffer>>,
    /// The state before and after [`Plan::step`](flashrnn_core::Plan::step). A call holds the lock
    /// until its work is enqueued.
    pub step: Mutex<Option<wgpu::Buffer>>,
}

impl Pool {
    /// Takes `bytes` bytes of uninitialised memory. A call enqueues all its work before it returns
    /// the memory, so the next call that takes it runs later.
    pub fn take(&self, device: &Device, bytes: usize) -> Result<Scratch<'_>> {
        let mut free = lock(&self.free);
        let found = free.iter().position(|buffer| buffer.size() == bytes as u64);
        let found = found.map(|i| free.swap_remove(i));
        drop(free);
        let buffer = found.map_or_else(|| device.memory(bytes), Ok)?;
        Ok(Scratch { buffer, first: 0, pool: Some(self) })
    }
}

/// The scratch memory of a call; returned to its pool when dropped.
pub(crate) struct Scratch<'a> {
    buffer: wgpu::Buffer,
    /// Offset in the buffer, in bytes.
    first: u64,
    pool: Option<&'a Pool>,
}

impl<'a> Scratch<'a> {
    /// Wraps the caller's workspace, whose size core has checked.
    ///
    /// # Errors
    /// [`Error::Argument`] if it does not begin at a multiple of [`ALIGN`].
    pub fn of_caller(ViewMut(view): &ViewMut<'a, u8>) -> Result<Self> {
        if !view.first.is_multiple_of(ALIGN) {
            return Err(Error::Argument {
                tensor: "workspace",
                why: "must begin at a multiple of 256 bytes",
            });
        }
        Ok(Self { buffer: view.buffer.clone(), first: view.first as u64, pool: None })
    }

    /// Binds regions of the sizes `bytes`, in the order and with the padding of
    /// [`workspace`](crate::layout::workspace).
    pub fn regions<const N: usize>(&self, bytes: [usize; N]) -> [Binding<'_>; N] {
        let mut first = self.first;
        bytes.map(|bytes| {
            let region = Binding::range(&self.buffer, first, bytes as u64);
            first += region_bytes(bytes) as u64;
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
