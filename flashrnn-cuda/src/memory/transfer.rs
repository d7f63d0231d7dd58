//! Buffers made, filled and read.

use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::sys::{self, CUdeviceptr};
use flashrnn_core::{Error, Result};

use crate::device::Device;
use crate::driver::check;
use crate::memory::{Buffer, View, ViewMut};

/// The bytes that `len` elements take.
fn bytes<P>(len: usize) -> Result<usize> {
    len.checked_mul(size_of::<P>()).ok_or(Error::OutOfMemory { bytes: usize::MAX })
}

impl Device {
    /// A buffer that holds whatever was there before.
    pub(crate) fn alloc<P: Pod>(self: &Arc<Self>, len: usize) -> Result<Buffer<P>> {
        let ptr = self.allocate(bytes::<P>(len)?)?;
        Ok(Buffer::new(ptr, len, self))
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
        let bytes = bytes::<P>(view.len())?;
        if bytes == 0 {
            return Ok(());
        }
        let _entered = self.enter()?;
        // SAFETY: the view covers as many bytes and is borrowed for writing.
        check(
            unsafe { sys::cuMemsetD8Async(view.ptr(), 0, bytes, self.stream.cu_stream()) },
            "zeroing memory",
        )
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
        // SAFETY: both sides have as many bytes.
        let result = unsafe {
            sys::cuMemcpyHtoDAsync_v2(view.ptr(), source, bytes, self.stream.cu_stream())
        };
        check(result, "copying to the device")?;
        // From ordinary memory the driver has copied. Memory that it knows, it may read later,
        // while the device copies.
        let mut kind = 0_u32;
        let mut asked = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
        let mut answer = (&raw mut kind).cast();
        // SAFETY: the driver takes any address, and writes a 32-bit number: 0 for memory that it
        // doesn't know.
        let result = unsafe {
            sys::cuPointerGetAttributes(1, &raw mut asked, &raw mut answer, source as CUdeviceptr)
        };
        check(result, "asking what memory this is")?;
        if kind == 0 { Ok(()) } else { self.synchronize() }
    }

    /// A copy of `view`; waits for all that was enqueued before.
    pub(crate) fn download<P: Pod>(&self, view: View<'_, P>) -> Result<Vec<P>> {
        view.check("view", self)?;
        let _entered = self.enter()?;
        let bytes = bytes::<P>(view.len())?;
        let mut data: Vec<P> = Vec::new();
        data.try_reserve_exact(view.len()).map_err(|_| Error::OutOfMemory { bytes })?;
        if bytes > 0 {
            let stream = self.stream.cu_stream();
            // SAFETY: there is room for as many bytes as the view covers, and it isn't touched
            // before the copy has ended.
            let result = unsafe {
                sys::cuMemcpyDtoHAsync_v2(data.as_mut_ptr().cast(), view.ptr(), bytes, stream)
            };
            check(result, "copying from the device")?;
        }
        self.synchronize()?;
        // SAFETY: all elements have been written (those of size 0 need not be), and any bytes are a
        // valid P.
        unsafe { data.set_len(view.len()) };
        Ok(data)
    }
}
