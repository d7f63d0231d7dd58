//! Reports of grid kernels that waited too long.

use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::sys;
use flashrnn_core::{Error, Result};

use crate::call::Address;
use crate::driver::check;

/// Host memory in which the kernels of a stream report that a block waited too long: one number, as
/// [`Watch::report`](crate::call::Watch) says, or 0.
pub(crate) struct WatchReport {
    host: *mut AtomicU64,
    device: Address,
}

// SAFETY: the host only accesses the memory as an atomic number.
unsafe impl Send for WatchReport {}
// SAFETY: as above.
unsafe impl Sync for WatchReport {}

impl WatchReport {
    /// Allocates the memory. The context must be current.
    pub(crate) fn new() -> Result<Self> {
        let mut host: *mut c_void = ptr::null_mut();
        let (bytes, flags) = (size_of::<AtomicU64>(), sys::CU_MEMHOSTALLOC_DEVICEMAP);
        // SAFETY: `host` outlives the call.
        let result = unsafe { sys::cuMemHostAlloc(&raw mut host, bytes, flags) };
        check(result, "allocating host memory")?;
        let mut report = Self { host: host.cast(), device: 0 };
        // SAFETY: the memory has `bytes` bytes, and no kernel knows it yet.
        unsafe { report.host.write(AtomicU64::new(0)) };
        // SAFETY: `host` was just allocated, and `device` outlives the call.
        let result = unsafe { sys::cuMemHostGetDevicePointer_v2(&raw mut report.device, host, 0) };
        check(result, "mapping host memory")?;
        Ok(report)
    }

    /// Returns the address for kernels.
    pub(crate) fn address(&self) -> Address {
        self.device
    }

    /// Returns an error if a kernel has reported one, and forgets it.
    ///
    /// # Errors
    /// [`Error::Device`] with the kernel, the block and the exchange.
    pub(crate) fn take(&self) -> Result<()> {
        // SAFETY: `new` has initialised the memory, which lives as long as `self`.
        let report = unsafe { &*self.host }.swap(0, Ordering::AcqRel);
        if report == 0 {
            return Ok(());
        }
        let pass = if report & 3 == 1 { "forward" } else { "backward" };
        let (block, exchange) = (report as u32 >> 2, report >> 32);
        Err(Error::device(format!(
            "the grid kernel of a {pass} pass waited too long: block {block} did not receive all \
             words of exchange {exchange}, and the results are NaN. Did something stop the GPU, \
             such as a debugger? (see Cuda::with_wait_limit)"
        )))
    }
}

impl Drop for WatchReport {
    fn drop(&mut self) {
        // SAFETY: the device that owns this has waited for its kernels, and its context is current.
        unsafe { sys::cuMemFreeHost(self.host.cast()) };
    }
}
