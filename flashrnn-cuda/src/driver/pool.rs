//! The pool that device memory comes from, and its allocation in the order of a stream.

use std::ffi::{c_int, c_void};
use std::ptr;

use cudarc::driver::sys::{self, CUdeviceptr, CUmemPool_attribute as PoolAttribute, CUresult};
use flashrnn_core::{Error, Result};

use crate::Cuda;
use crate::device::Device;
use crate::driver::{check, failure};

impl Cuda {
    /// How much device memory the buffers take of this `Cuda`, its clones and the other streams'
    /// handles made of them.
    ///
    /// # Errors
    /// [`Error::Device`]; [`Error::Unsupported`] where the device has no memory pools.
    pub fn memory(&self) -> Result<MemoryUse> {
        let _entered = self.device.enter()?;
        let pool = self.device.shared.pool.as_ref().ok_or_else(|| Error::Unsupported {
            backend: "cuda",
            what: "counting memory".into(),
            why: "this device has no memory pools".into(),
        })?;
        Ok(MemoryUse {
            used: pool.attribute(PoolAttribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?,
            reserved: pool.attribute(PoolAttribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?,
        })
    }
}

/// Device memory, in bytes, of a [`Cuda`] and all that share its context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// In buffers that are alive, or whose freeing has been enqueued and not yet run.
    pub used: u64,
    /// Taken from the device: `used`, and what is kept for the next buffers.
    pub reserved: u64,
}

/// A pool that keeps what is freed for the next allocation. Our own, so that nobody else's pool is
/// changed.
pub(crate) struct Pool(sys::CUmemoryPool);

// SAFETY: the driver's functions on pools may be called from any thread.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl Pool {
    /// The context is current.
    pub(crate) fn new(ordinal: usize) -> Result<Self> {
        // The fields differ between CUDA's versions, their places don't: type of allocation, type
        // of handle, type of location, its number.
        const WORDS: usize = size_of::<sys::CUmemPoolProps>() / 8;
        const {
            assert!(size_of::<sys::CUmemPoolProps>().is_multiple_of(8) && WORDS >= 2);
        }
        let pinned = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED as u32;
        let on_device = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE as u32;
        let head = [pinned, 0, on_device, ordinal as u32];
        let mut properties = [0_u64; WORDS];
        bytemuck::cast_slice_mut::<u64, u32>(&mut properties)[..4].copy_from_slice(&head);
        let mut pool = ptr::null_mut();
        // SAFETY: the properties have the size and alignment of the driver's structure and hold a
        // valid one: everything after the four fields may be 0.
        let result = unsafe { sys::cuMemPoolCreate(&raw mut pool, properties.as_ptr().cast()) };
        check(result, "creating a memory pool")?;
        let pool = Self(pool);
        let mut keep = u64::MAX;
        pool.set(PoolAttribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, (&raw mut keep).cast())?;
        // A stream must not wait for another one whose memory it takes over.
        let mut no: c_int = 0;
        pool.set(
            PoolAttribute::CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES,
            (&raw mut no).cast(),
        )?;
        Ok(pool)
    }

    /// Sets an attribute to what `value` points to: an `int` or a 64-bit number, as the attribute
    /// asks.
    fn set(&self, attribute: PoolAttribute, value: *mut c_void) -> Result<()> {
        // SAFETY: the pool is alive, and all callers give a number of the attribute's type.
        check(
            unsafe { sys::cuMemPoolSetAttribute(self.0, attribute, value) },
            "setting up a memory pool",
        )
    }

    /// Gives memory that no buffer uses back to the device.
    fn trim(&self) -> Result<()> {
        // SAFETY: the pool is alive.
        check(unsafe { sys::cuMemPoolTrimTo(self.0, 0) }, "giving memory back")
    }

    /// The most memory that was in use at any time since [`Pool::forget_peak`], in bytes.
    pub(crate) fn peak(&self) -> Result<u64> {
        self.attribute(PoolAttribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)
    }

    /// Counts the peak from what is in use now.
    pub(crate) fn forget_peak(&self) -> Result<()> {
        let mut zero = 0_u64;
        self.set(PoolAttribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, (&raw mut zero).cast())
    }

    fn attribute(&self, attribute: PoolAttribute) -> Result<u64> {
        let mut value = 0_u64;
        // SAFETY: the pool is alive, and the attributes asked for are 64-bit numbers.
        let result =
            unsafe { sys::cuMemPoolGetAttribute(self.0, attribute, (&raw mut value).cast()) };
        check(result, "reading a memory pool")?;
        Ok(value)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: no buffer is left, since each keeps the device alive.
        unsafe { sys::cuMemPoolDestroy(self.0) };
    }
}

impl Device {
    /// Gives memory back to the device that is kept for later buffers and that no enqueued work
    /// uses any more.
    pub(crate) fn trim(&self) -> Result<()> {
        let _entered = self.enter()?;
        self.synchronize()?;
        self.shared.pool.as_ref().map_or(Ok(()), Pool::trim)
    }

    /// Frees what `allocate` returned, after all that was enqueued before. A failure here is one of
    /// the device's, which the next call meets too.
    pub(crate) fn free(&self, ptr: CUdeviceptr) {
        if ptr == 0 {
            return;
        }
        let Ok(_entered) = self.enter() else { return };
        // SAFETY: only a buffer's drop calls this, once, with the address that it got from
        // `allocate`.
        unsafe {
            match self.shared.pool {
                Some(_) => sys::cuMemFreeAsync(ptr, self.stream.cu_stream()),
                None => sys::cuMemFree_v2(ptr),
            };
        }
    }

    /// The address of fresh memory; 0 for no bytes.
    pub(crate) fn allocate(&self, bytes: usize) -> Result<CUdeviceptr> {
        if bytes == 0 {
            return Ok(0);
        }
        if bytes > self.shared.memory {
            return Err(Error::OutOfMemory { bytes });
        }
        let _entered = self.enter()?;
        let mut result = self.try_allocate(bytes);
        if let (Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY), Some(pool)) = (result, &self.shared.pool) {
            // What was kept may be in pieces too small: give it back to the device and ask again.
            self.synchronize()?;
            pool.trim()?;
            result = self.try_allocate(bytes);
        }
        result.map_err(|failed| match failed {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::OutOfMemory { bytes },
            failed => failure(failed, "allocating device memory"),
        })
    }

    fn try_allocate(&self, bytes: usize) -> std::result::Result<CUdeviceptr, CUresult> {
        let mut ptr = 0;
        // SAFETY: pool and stream are alive, and the pointer is to an address that lives through
        // the call.
        let result = unsafe {
            match &self.shared.pool {
                Some(pool) => sys::cuMemAllocFromPoolAsync(
                    &raw mut ptr,
                    bytes,
                    pool.0,
                    self.stream.cu_stream(),
                ),
                None => sys::cuMemAlloc_v2(&raw mut ptr, bytes),
            }
        };
        if result == CUresult::CUDA_SUCCESS { Ok(ptr) } else { Err(result) }
    }
}
