//! The pool that device memory is allocated from.

use std::ffi::{c_int, c_void};
use std::ptr;

use cudarc::driver::sys::{
    self, CUdeviceptr, CUmemPool_attribute as PoolAttribute, CUresult, CUstream,
};
use flashrnn_core::Result;

use crate::driver::check;

/// Device memory, in bytes, of a [`Cuda`](crate::Cuda) and of all handles that share its context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// Bytes in live buffers, and in buffers whose freeing is enqueued but has not run.
    pub used: u64,
    /// Bytes taken from the GPU: `used`, and what the pool keeps for later buffers.
    pub reserved: u64,
}

/// A memory pool that keeps freed memory for later allocations. This crate creates its own pool, so
/// the attributes set here affect no other code.
pub(crate) struct Pool(sys::CUmemoryPool);

// SAFETY: the driver's functions on pools may be called from any thread.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl Pool {
    /// Creates a pool on device `ordinal`, whose context must be current.
    pub(crate) fn new(ordinal: usize) -> Result<Self> {
        // The names of the fields differ between CUDA versions, but their positions do not:
        // allocation type, handle type, location type, location id.
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
        // SAFETY: `properties` has the size and alignment of the driver's struct. Its value is
        // valid, because every field after the first four may be 0.
        let result = unsafe { sys::cuMemPoolCreate(&raw mut pool, properties.as_ptr().cast()) };
        check(result, "creating a memory pool")?;
        let pool = Self(pool);
        let mut keep = u64::MAX;
        pool.set(PoolAttribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, (&raw mut keep).cast())?;
        // A stream must not wait for another stream in order to reuse memory freed there.
        let mut no: c_int = 0;
        pool.set(
            PoolAttribute::CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES,
            (&raw mut no).cast(),
        )?;
        Ok(pool)
    }

    /// Sets an attribute to the number that `value` points to: an `int` or a 64-bit integer,
    /// depending on the attribute.
    fn set(&self, attribute: PoolAttribute, value: *mut c_void) -> Result<()> {
        // SAFETY: the pool is alive, and every caller points to a number of the attribute's type.
        let result = unsafe { sys::cuMemPoolSetAttribute(self.0, attribute, value) };
        check(result, "setting up a memory pool")
    }

    /// Makes a stream-ordered allocation of `bytes` bytes on `stream`. The context must be current.
    pub(crate) fn allocate(
        &self,
        bytes: usize,
        stream: CUstream,
    ) -> std::result::Result<CUdeviceptr, CUresult> {
        let mut ptr = 0;
        // SAFETY: the pool and the stream are alive, and `ptr` outlives the call.
        match unsafe { sys::cuMemAllocFromPoolAsync(&raw mut ptr, bytes, self.0, stream) } {
            CUresult::CUDA_SUCCESS => Ok(ptr),
            failed => Err(failed),
        }
    }

    /// Returns unused memory to the GPU.
    pub(crate) fn trim(&self) -> Result<()> {
        // SAFETY: the pool is alive.
        check(unsafe { sys::cuMemPoolTrimTo(self.0, 0) }, "returning memory to the device")
    }

    /// Returns how much memory is in use now.
    pub(crate) fn memory_use(&self) -> Result<MemoryUse> {
        Ok(MemoryUse {
            used: self.attribute(PoolAttribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?,
            reserved: self.attribute(PoolAttribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?,
        })
    }

    /// Returns the maximum memory in use since [`Pool::reset_peak`], in bytes.
    pub(crate) fn peak(&self) -> Result<u64> {
        self.attribute(PoolAttribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)
    }

    /// Resets the peak to the memory in use now.
    pub(crate) fn reset_peak(&self) -> Result<()> {
        let mut zero = 0_u64;
        self.set(PoolAttribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, (&raw mut zero).cast())
    }

    fn attribute(&self, attribute: PoolAttribute) -> Result<u64> {
        let mut value = 0_u64;
        // SAFETY: the pool is alive, and all attributes read here are 64-bit integers.
        let result =
            unsafe { sys::cuMemPoolGetAttribute(self.0, attribute, (&raw mut value).cast()) };
        check(result, "reading a memory pool")?;
        Ok(value)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: no buffer is left. Each buffer keeps the context alive, and the context drops the
        // pool.
        unsafe { sys::cuMemPoolDestroy(self.0) };
    }
}
