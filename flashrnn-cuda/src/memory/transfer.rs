//! Allocation of buffers, and copies between host and device.

use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::sys::{self, CUdeviceptr};
use flashrnn_core::{Error, Result};

use crate::device::Device;
use crate::driver::check;
use crate::memory::{Buffer, View, ViewMut};

/// Returns the size of `len` elements in bytes.
fn bytes<P>(len: usize) -> Result<usize> {
    len.checked_mul(size_of::<P>()).ok_or(Error::OutOfMemory { bytes: usize::MAX })
}

impl Device {
    /// Allocates an uninitialised buffer.
    pub(crate) fn alloc<P: Pod>(self: &Arc<Self>, len: usize) -> Result<Buffer<P>> {
        let ptr = self.allocate(bytes::<P>(len)?)?;
        Ok(Buffer::new(ptr, len, self))
    }

    /// Allocates a buffer of zeros.
    pub(crate) fn zeroed<P: Pod>(self: &Arc<Self>, len: usize) -> Result<Buffer<P>> {
        let mut buffer = self.alloc(len)?;
        self.zero(&mut buffer.view_mut())?;
        Ok(buffer)
    }

    /// Sets every byte of `view` to 0.
    pub(crate) fn zero<P: Pod>(&self, view: &mut ViewMut<'_, P>) -> Result<()> {
        view.check("view", self)?;
        let bytes = bytes::<P>(view.len())?;
        if bytes == 0 {
            return Ok(());
        }
        let _entered = self.enter()?;
        let stream = self.stream.cu_stream();
        // SAFETY: the view has `bytes` bytes and is borrowed for writing.
        let result = unsafe { sys::cuMemsetD8Async(view.ptr(), 0, bytes, stream) };
        check(result, "zeroing memory")
    }

    /// Allocates a buffer that holds a copy of `data`.
    pub(crate) fn upload<P: Pod>(self: &Arc<Self>, data: &[P]) -> Result<Buffer<P>> {
        let mut buffer = self.alloc(data.len())?;
        self.copy_in(data, &mut buffer.view_mut())?;
        Ok(buffer)
    }

    /// Copies `data` to `view`. `data` may change as soon as this returns.
    ///
    /// # Errors
    /// [`Error::Shape`] if the lengths differ, [`Error::Argument`] if `view` belongs to another
    /// stream, [`Error::Device`] if the copy fails.
    pub(crate) fn copy_in<P: Pod>(&self, data: &[P], view: &mut ViewMut<'_, P>) -> Result<()> {
        view.check("view", self)?;
        if data.len() != view.len() {
            return Err(Error::Shape {
                tensor: "view",
                got: vec![view.len()],
                want: vec![data.len()],
            });
        }
        let bytes = size_of_val(data);
        if bytes == 0 {
            return Ok(());
        }
        let _entered = self.enter()?;
        let source = data.as_ptr().cast();
        // SAFETY: both sides have `bytes` bytes.
        let result = unsafe {
            sys::cuMemcpyHtoDAsync_v2(view.ptr(), source, bytes, self.stream.cu_stream())
        };
        check(result, "copying to the device")?;
        // The driver has already copied pageable memory to a staging buffer. The GPU may read
        // pinned or managed memory later, so wait for that.
        let mut kind = 0_u32;
        let mut asked = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
        let mut answer = (&raw mut kind).cast();
        // SAFETY: the driver accepts any address, and writes a 32-bit number that is 0 if it does
        // not manage the memory.
        let result = unsafe {
            sys::cuPointerGetAttributes(1, &raw mut asked, &raw mut answer, source as CUdeviceptr)
        };
        check(result, "asking what memory this is")?;
        if kind == 0 { Ok(()) } else { self.synchronize() }
    }

    /// Waits for all enqueued work and copies `view` to the host.
    pub(crate) fn download<P: Pod>(&self, view: View<'_, P>) -> Result<Vec<P>> {
        view.check("view", self)?;
        let _entered = self.enter()?;
        let bytes = bytes::<P>(view.len())?;
        let mut data: Vec<P> = Vec::new();
        data.try_reserve_exact(view.len()).map_err(|_| Error::OutOfMemory { bytes })?;
        if bytes > 0 {
            let stream = self.stream.cu_stream();
            // SAFETY: `data` has room for `bytes` bytes and is not accessed before the copy ends.
            let result = unsafe {
                sys::cuMemcpyDtoHAsync_v2(data.as_mut_ptr().cast(), view.ptr(), bytes, stream)
            };
            check(result, "copying from the device")?;
        }
        self.synchronize()?;
        // SAFETY: the copy has written every element (zero-sized elements need none), and any bytes
        // are a valid P.
        unsafe { data.set_len(view.len()) };
        Ok(data)
    }
}
