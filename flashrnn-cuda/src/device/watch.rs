//! Reports of grid kernels that waited too long.

use std::ffi::c_void;
use std::ptr;

use cudarc::driver::sys;
use flashrnn_core::{Error, Result};

use crate::call::Address;
use crate::driver::check;

/// The numbers of a report: the kernel (0 if there is no report), a block and the exchange that it
/// waited for.
const NUMBERS: usize = 3;

/// Host memory in which the kernels of a stream report that a block waited too long.
pub(crate) struct WatchReport {
    host: *mut u32,
    device: Address,
}

// SAFETY: the memory is only accessed through volatile reads and writes.
unsafe impl Send for WatchReport {}
// SAFETY: as above.
unsafe impl Sync for WatchReport {}

impl WatchReport {
    /// Allocates the memory. The context must be current.
    pub(crate) fn new() -> Result<Self> {
        let mut host: *mut c_void = ptr::null_mut();
        let bytes = NUMBERS * size_of::<u32>();
        // SAFETY: `host` outlives the call.
        let result =
            unsafe { sys::cuMemHostAlloc(&raw mut host, bytes, sys::CU_MEMHOSTALLOC_DEVICEMAP) };
        check(result, "allocating host memory")?;
        let mut report = Self { host: host.cast(), device: 0 };
        // SAFETY: the memory has `bytes` bytes, and no kernel knows it yet.
        unsafe { ptr::write_bytes(report.host, 0, NUMBERS) };
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
        // SAFETY: the memory has NUMBERS numbers. A kernel writes the first one last.
        let [kernel, block, exchange] =
            [0, 1, 2].map(|i| unsafe { ptr::read_volatile(self.host.add(i)) });
        if kernel == 0 {
            return Ok(());
        }
        // SAFETY: as above.
        unsafe { ptr::write_volatile(self.host, 0) };
        let pass = if kernel == 1 { "forward" } else { "backward" };
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
