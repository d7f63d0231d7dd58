//! Device memory: our own ([`Buffer`]), and parts of it or of the caller's ([`View`], [`ViewMut`]).

use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};
use std::ptr;
use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::sys::{self, CUdeviceptr, CUmemPool_attribute as PoolAttribute, CUresult};
use cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut, SyncOnDrop};
use flashrnn_core::{Error, Len, Result};

use crate::Cuda;
use crate::device::{Device, check, failure};

/// The number of elements, with and without the trait in scope.
macro_rules! len {
    ($type:ty) => {
        impl<P> $type {
            /// The number of elements.
            #[must_use]
            pub fn len(&self) -> usize {
                self.len
            }

            /// Whether there are none.
            #[must_use]
            pub fn is_empty(&self) -> bool {
                self.len == 0
            }
        }

        impl<P> Len for $type {
            fn len(&self) -> usize {
                self.len
            }
        }
    };
}

/// Owned device memory for `len` elements. Allocated and freed in the order of the device's stream.
pub struct Buffer<P> {
    ptr: CUdeviceptr,
    len: usize,
    device: Arc<Device>,
    element: PhantomData<P>,
}

impl<P> Buffer<P> {
    /// The whole buffer, for reading.
    #[must_use]
    pub fn view(&self) -> View<'_, P> {
        View { ptr: self.ptr, len: self.len, stream: Some(self.stream()), memory: PhantomData }
    }

    /// The whole buffer, for writing.
    #[must_use]
    pub fn view_mut(&mut self) -> ViewMut<'_, P> {
        ViewMut { ptr: self.ptr, len: self.len, stream: Some(self.stream()), memory: PhantomData }
    }

    /// The address of the first element; 0 where there are none.
    #[must_use]
    pub fn ptr(&self) -> CUdeviceptr {
        self.ptr
    }

    fn stream(&self) -> StreamId {
        StreamId(self.device.stream.cu_stream() as usize)
    }
}

len!(Buffer<P>);

impl<P> Drop for Buffer<P> {
    fn drop(&mut self) {
        if self.ptr == 0 || self.device.enter().is_err() {
            return;
        }
        // SAFETY: `allocate` made this address, and only this frees it, after all that was enqueued before. A failure here is
        // one of the device's, which the next call meets too.
        unsafe {
            match self.device.pool {
                Some(_) => sys::cuMemFreeAsync(self.ptr, self.device.stream.cu_stream()),
                None => sys::cuMemFree_v2(self.ptr),
            };
        }
    }
}

/// The stream in whose order a buffer lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct StreamId(usize);

/// Device memory borrowed for reading.
pub struct View<'a, P> {
    ptr: CUdeviceptr,
    len: usize,
    stream: Option<StreamId>,
    memory: PhantomData<&'a [P]>,
}

impl<P> Clone for View<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P> Copy for View<'_, P> {}

/// Device memory borrowed for writing.
pub struct ViewMut<'a, P> {
    ptr: CUdeviceptr,
    len: usize,
    stream: Option<StreamId>,
    memory: PhantomData<&'a mut [P]>,
}

macro_rules! view {
    ($view:ident) => {
        impl<'a, P> $view<'a, P> {
            /// `len` elements at `ptr`, memory that somebody else owns.
            ///
            /// # Safety
            /// The memory must hold `len` elements of `P`, aligned as the type asks, readable (and writable, for a
            /// `ViewMut`) from the device's context, until the work that uses the view has run, not only been enqueued.
            /// Until then nobody else writes it (nor reads it, for a `ViewMut`) but in the order of the device's stream.
            #[must_use]
            pub unsafe fn from_raw(ptr: CUdeviceptr, len: usize) -> Self {
                Self { ptr, len, stream: None, memory: PhantomData }
            }

            /// The address of the first element; anything where there are none.
            #[must_use]
            pub fn ptr(&self) -> CUdeviceptr {
                self.ptr
            }

            /// The elements in `range`.
            ///
            /// # Errors
            /// [`Error::Shape`] where the range reaches beyond the view.
            pub fn slice(self, range: impl RangeBounds<usize>) -> Result<Self> {
                let start = match range.start_bound() {
                    Bound::Included(&start) => Some(start),
                    Bound::Excluded(&start) => start.checked_add(1),
                    Bound::Unbounded => Some(0),
                };
                let end = match range.end_bound() {
                    Bound::Included(&end) => end.checked_add(1),
                    Bound::Excluded(&end) => Some(end),
                    Bound::Unbounded => Some(self.len),
                };
                match (start, end) {
                    (Some(start), Some(end)) if start <= end && end <= self.len => Ok(Self {
                        ptr: self.ptr + (start * size_of::<P>()) as CUdeviceptr,
                        len: end - start,
                        ..self
                    }),
                    _ => Err(Error::Shape {
                        tensor: "slice of a view",
                        got: vec![start.unwrap_or(usize::MAX), end.unwrap_or(usize::MAX)],
                        want: vec![0, self.len],
                    }),
                }
            }

            /// Whether `device` may use it: a buffer's memory is valid only in the order of its own stream.
            ///
            /// # Errors
            /// [`Error::Argument`]
            pub(crate) fn check(&self, tensor: &'static str, device: &Device) -> Result<()> {
                match self.stream {
                    Some(stream) if stream.0 != device.stream.cu_stream() as usize => Err(Error::Argument {
                        tensor,
                        why: "its buffer belongs to another device or stream than the call",
                    }),
                    _ => Ok(()),
                }
            }
        }

        len!($view<'_, P>);
    };
}

view!(View);
view!(ViewMut);

impl<P> ViewMut<'_, P> {
    /// The same memory, for reading.
    #[must_use]
    pub fn as_view(&self) -> View<'_, P> {
        View { ptr: self.ptr, len: self.len, stream: self.stream, memory: PhantomData }
    }

    /// The same memory, for writing, for a shorter time.
    #[must_use]
    pub fn reborrow(&mut self) -> ViewMut<'_, P> {
        ViewMut { ptr: self.ptr, len: self.len, stream: self.stream, memory: PhantomData }
    }
}

/// One of cudarc's slices, lent to a [`Cuda`] for reading. Work enqueued while this lives comes after what was written to
/// the slice before, and before what is written to it later, on whatever stream.
pub struct Borrowed<'a, P> {
    ptr: CUdeviceptr,
    len: usize,
    _order: SyncOnDrop<'a>,
    element: PhantomData<&'a [P]>,
}

impl<P> Borrowed<'_, P> {
    /// The whole slice.
    #[must_use]
    pub fn view(&self) -> View<'_, P> {
        View { ptr: self.ptr, len: self.len, stream: None, memory: PhantomData }
    }
}

/// One of cudarc's slices, lent to a [`Cuda`] for writing, as [`Borrowed`].
pub struct BorrowedMut<'a, P> {
    ptr: CUdeviceptr,
    len: usize,
    _order: SyncOnDrop<'a>,
    element: PhantomData<&'a mut [P]>,
}

impl<P> BorrowedMut<'_, P> {
    /// The whole slice.
    #[must_use]
    pub fn view_mut(&mut self) -> ViewMut<'_, P> {
        ViewMut { ptr: self.ptr, len: self.len, stream: None, memory: PhantomData }
    }
}

impl Cuda {
    /// Lends one of cudarc's slices for reading, without a copy.
    ///
    /// # Errors
    /// [`Error::Argument`] where cudarc can't keep the slice's uses in order: it is on another stream and belongs to another
    /// `CudaContext` than this one's stream, or its context doesn't track events.
    pub fn borrow<'a, P>(&'a self, slice: &'a CudaSlice<P>) -> Result<Borrowed<'a, P>> {
        self.check_order(slice)?;
        let (ptr, order) = slice.device_ptr(&self.device.stream);
        Ok(Borrowed { ptr, len: slice.len(), _order: order, element: PhantomData })
    }

    /// Lends one of cudarc's slices for writing, without a copy.
    ///
    /// # Errors
    /// As [`Cuda::borrow`].
    pub fn borrow_mut<'a, P>(&'a self, slice: &'a mut CudaSlice<P>) -> Result<BorrowedMut<'a, P>> {
        self.check_order(slice)?;
        let len = slice.len();
        let (ptr, order) = slice.device_ptr_mut(&self.device.stream);
        Ok(BorrowedMut { ptr, len, _order: order, element: PhantomData })
    }

    fn check_order<P>(&self, slice: &CudaSlice<P>) -> Result<()> {
        self.device.enter()?;
        let same_stream = slice.stream() == &self.device.stream;
        let tracked = Arc::ptr_eq(slice.context(), &self.device.context)
            && slice.context().is_managing_stream_synchronization();
        if same_stream || tracked {
            return Ok(());
        }
        Err(Error::Argument {
            tensor: "slice",
            why: "it is on another stream, and its context and this one's don't track each other's events",
        })
    }

    /// How much device memory the buffers of this `Cuda` and its clones take.
    ///
    /// # Errors
    /// [`Error::Device`]; [`Error::Unsupported`] where the device has no memory pools.
    pub fn memory(&self) -> Result<MemoryUse> {
        self.device.enter()?;
        let pool = self.device.pool.as_ref().ok_or_else(|| Error::Unsupported {
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

/// Device memory, in bytes, of a [`Cuda`] and its clones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// In buffers that are alive, or whose freeing has been enqueued and not yet run.
    pub used: u64,
    /// Taken from the device: `used`, and what is kept for the next buffers.
    pub reserved: u64,
}

/// A pool that keeps what is freed for the next allocation. Our own, so that nobody else's pool is changed.
pub(crate) struct Pool(sys::CUmemoryPool);

// SAFETY: the driver's functions on pools may be called from any thread.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl Pool {
    /// The context is current.
    pub(crate) fn new(ordinal: usize) -> Result<Self> {
        // The fields differ between CUDA's versions, their places don't: type of allocation, type of handle, type of
        // location, its number.
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
        // SAFETY: the properties have the size and alignment of the driver's structure and hold a valid one: everything after
        // the four fields may be 0.
        let result = unsafe { sys::cuMemPoolCreate(&raw mut pool, properties.as_ptr().cast()) };
        check(result, "creating a memory pool")?;
        let pool = Self(pool);
        let mut keep = u64::MAX;
        let threshold = PoolAttribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        // SAFETY: the pool is alive, and this attribute is a 64-bit number.
        let result = unsafe { sys::cuMemPoolSetAttribute(pool.0, threshold, (&raw mut keep).cast()) };
        check(result, "setting up a memory pool")?;
        Ok(pool)
    }

    fn attribute(&self, attribute: PoolAttribute) -> Result<u64> {
        let mut value = 0_u64;
        // SAFETY: the pool is alive, and the attributes asked for are 64-bit numbers.
        let result = unsafe { sys::cuMemPoolGetAttribute(self.0, attribute, (&raw mut value).cast()) };
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

/// The bytes that `len` elements take.
fn bytes<P>(len: usize) -> Result<usize> {
    len.checked_mul(size_of::<P>()).ok_or(Error::OutOfMemory { bytes: usize::MAX })
}

impl Device {
    /// A buffer that holds whatever was there before.
    pub(crate) fn alloc<P: Pod>(self: &Arc<Self>, len: usize) -> Result<Buffer<P>> {
        let ptr = self.allocate(bytes::<P>(len)?)?;
        Ok(Buffer { ptr, len, device: self.clone(), element: PhantomData })
    }

    /// A buffer of zeros.
    pub(crate) fn zeroed<P: Pod>(self: &Arc<Self>, len: usize) -> Result<Buffer<P>> {
        let mut buffer = self.alloc(len)?;
        self.zero(&mut buffer.view_mut())?;
        Ok(buffer)
    }

    /// Sets every byte of `view` to 0.
    pub(crate) fn zero<P: Pod>(&self, view: &mut ViewMut<'_, P>) -> Result<()> {
        view.check("view", self)?;
        let bytes = bytes::<P>(view.len)?;
        if bytes == 0 {
            return Ok(());
        }
        self.enter()?;
        // SAFETY: the view covers as many bytes and is borrowed for writing.
        check(unsafe { sys::cuMemsetD8Async(view.ptr, 0, bytes, self.stream.cu_stream()) }, "zeroing memory")
    }

    /// A buffer with a copy of `data`.
    pub(crate) fn upload<P: Pod>(self: &Arc<Self>, data: &[P]) -> Result<Buffer<P>> {
        let mut buffer = self.alloc(data.len())?;
        self.copy_in(data, &mut buffer.view_mut())?;
        Ok(buffer)
    }

    /// Copies `data` to `view`, which has its length. `data` may change as soon as this returns.
    pub(crate) fn copy_in<P: Pod>(&self, data: &[P], view: &mut ViewMut<'_, P>) -> Result<()> {
        view.check("view", self)?;
        if data.len() != view.len {
            return Err(Error::Shape { tensor: "view", got: vec![view.len], want: vec![data.len()] });
        }
        let bytes = size_of_val(data);
        if bytes == 0 {
            return Ok(());
        }
        self.enter()?;
        let source = data.as_ptr().cast();
        // SAFETY: both sides have as many bytes.
        let result = unsafe { sys::cuMemcpyHtoDAsync_v2(view.ptr, source, bytes, self.stream.cu_stream()) };
        check(result, "copying to the device")?;
        // From ordinary memory the driver has copied. Memory that it knows, it may read later, while the device copies.
        let mut kind = 0_u32;
        let mut asked = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
        let mut answer = (&raw mut kind).cast();
        // SAFETY: the driver takes any address, and writes a 32-bit number: 0 for memory that it doesn't know.
        let result =
            unsafe { sys::cuPointerGetAttributes(1, &raw mut asked, &raw mut answer, source as CUdeviceptr) };
        check(result, "asking what memory this is")?;
        if kind == 0 { Ok(()) } else { self.synchronize() }
    }

    /// A copy of `view`; waits for all that was enqueued before.
    pub(crate) fn download<P: Pod>(&self, view: View<'_, P>) -> Result<Vec<P>> {
        view.check("view", self)?;
        let bytes = bytes::<P>(view.len)?;
        let mut data: Vec<P> = Vec::new();
        data.try_reserve_exact(view.len).map_err(|_| Error::OutOfMemory { bytes })?;
        if bytes > 0 {
            self.enter()?;
            let stream = self.stream.cu_stream();
            // SAFETY: there is room for as many bytes as the view covers, and it isn't touched before the copy has ended.
            let result =
                unsafe { sys::cuMemcpyDtoHAsync_v2(data.as_mut_ptr().cast(), view.ptr, bytes, stream) };
            check(result, "copying from the device")?;
        }
        self.synchronize()?;
        // SAFETY: all elements have been written (those of size 0 need not be), and any bytes are a valid P.
        unsafe { data.set_len(view.len) };
        Ok(data)
    }

    /// The address of fresh memory; 0 for no bytes.
    fn allocate(&self, bytes: usize) -> Result<CUdeviceptr> {
        if bytes == 0 {
            return Ok(0);
        }
        if bytes > self.memory {
            return Err(Error::OutOfMemory { bytes });
        }
        self.enter()?;
        let mut result = self.try_allocate(bytes);
        if let (Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY), Some(pool)) = (result, &self.pool) {
            // What was kept may be in pieces too small: give it back to the device and ask again.
            self.synchronize()?;
            // SAFETY: the pool is alive.
            check(unsafe { sys::cuMemPoolTrimTo(pool.0, 0) }, "giving memory back")?;
            result = self.try_allocate(bytes);
        }
        result.map_err(|failed| match failed {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::OutOfMemory { bytes },
            failed => failure(failed, "allocating device memory"),
        })
    }

    fn try_allocate(&self, bytes: usize) -> std::result::Result<CUdeviceptr, CUresult> {
        let mut ptr = 0;
        // SAFETY: pool and stream are alive, and the pointer is to an address that lives through the call.
        let result = unsafe {
            match &self.pool {
                Some(pool) => {
                    sys::cuMemAllocFromPoolAsync(&raw mut ptr, bytes, pool.0, self.stream.cu_stream())
                }
                None => sys::cuMemAlloc_v2(&raw mut ptr, bytes),
            }
        };
        if result == CUresult::CUDA_SUCCESS { Ok(ptr) } else { Err(result) }
    }
}
