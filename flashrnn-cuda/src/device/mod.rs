//! A device: a stream of a GPU's context, and the memory allocated in its order.

pub(crate) mod blas;
pub(crate) mod context;
pub(crate) mod watch;

use std::sync::{Arc, OnceLock};

use cudarc::driver::CudaStream;
use cudarc::driver::sys::{self, CUdeviceptr, CUresult};
use flashrnn_core::{Error, Result};

use crate::device::context::Context;
use crate::device::watch::WatchReport;
use crate::driver::current::Entered;
use crate::driver::stream::SideStream;
use crate::driver::{check, failure};

/// A stream and its context, shared by the clones of a [`Cuda`](crate::Cuda), its buffers and its
/// plans.
pub(crate) struct Device {
    // The order of these fields is the order in which they must be dropped.
    /// Joins `stream` again before any call returns.
    pub(crate) side: SideStream,
    pub(crate) stream: Arc<CudaStream>,
    /// Where grid kernels report that they waited too long. Made for the first of them.
    watch: OnceLock<WatchReport>,
    /// Set by `drop` so that the context is current while the fields above are dropped.
    entered: Option<Entered>,
    pub(crate) context: Arc<Context>,
}

/// Identifies the stream in whose order memory is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StreamId {
    context: usize,
    stream: usize,
}

impl Device {
    /// # Errors
    /// [`Error::Argument`] if `stream` is CUDA's per-thread stream, [`Error::Device`] if the driver
    /// fails.
    pub(crate) fn new(context: Arc<Context>, stream: Arc<CudaStream>) -> Result<Self> {
        if stream.cu_stream() as usize == PER_THREAD_STREAM {
            let why =
                "CUDA's per-thread stream is another one on every thread; use a stream of its own";
            return Err(Error::Argument { tensor: "stream", why });
        }
        let _entered = context.enter()?;
        Ok(Self {
            side: SideStream::new()?,
            stream,
            watch: OnceLock::new(),
            entered: None,
            context,
        })
    }

    /// Makes the device's context current on this thread until the guard is dropped. Every method
    /// that enqueues work or allocates memory calls this first.
    pub(crate) fn enter(&self) -> Result<Entered> {
        self.context.enter()
    }

    /// Makes the device's context current for a call of a plan.
    ///
    /// # Errors
    /// [`Error::Device`] if the driver fails, or if a grid kernel has waited too long.
    pub(crate) fn begin_call(&self) -> Result<Entered> {
        let entered = self.enter()?;
        self.check_watch()?;
        Ok(entered)
    }

    /// Returns where the stream's grid kernels report that they waited too long.
    pub(crate) fn watch(&self) -> Result<&WatchReport> {
        if let Some(watch) = self.watch.get() {
            return Ok(watch);
        }
        let _entered = self.enter()?;
        let made = WatchReport::new()?;
        // If another thread was faster, its memory is kept and this is freed.
        Ok(self.watch.get_or_init(|| made))
    }

    /// Returns the error that a grid kernel has reported, if there is one, and forgets it.
    fn check_watch(&self) -> Result<()> {
        self.watch.get().map_or(Ok(()), WatchReport::take)
    }

    /// Identifies the stream that this device's memory belongs to. The address of a live stream is
    /// unique within its context.
    pub(crate) fn stream_id(&self) -> StreamId {
        StreamId {
            context: self.context.cuda.cu_ctx() as usize,
            stream: self.stream.cu_stream() as usize,
        }
    }

    /// Returns whether work enqueued on the stream is captured in a graph of the caller's. Such
    /// work may run any number of times, beside other work on the stream, and must use no memory
    /// that outlives its call.
    pub(crate) fn is_capturing(&self) -> Result<bool> {
        let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        // SAFETY: the device keeps the stream alive, and `status` outlives the call.
        let result = unsafe { sys::cuStreamIsCapturing(self.stream.cu_stream(), &raw mut status) };
        check(result, "asking whether the stream is captured")?;
        Ok(status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    /// Waits until all enqueued work has run.
    ///
    /// # Errors
    /// [`Error::Device`] if the driver fails, or if a grid kernel has waited too long.
    pub(crate) fn synchronize(&self) -> Result<()> {
        self.wait()?;
        self.check_watch()
    }

    /// Waits as `synchronize` does, but leaves the report of a grid kernel to a later call.
    pub(crate) fn wait(&self) -> Result<()> {
        let _entered = self.enter()?;
        // SAFETY: the device keeps the stream alive.
        let result = unsafe { sys::cuStreamSynchronize(self.stream.cu_stream()) };
        check(result, "waiting for the device")
    }

    /// Allocates `bytes` bytes in stream order and returns their address, or 0 if `bytes` is 0. The
    /// memory is uninitialised.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if the GPU has too little free memory, [`Error::Device`] if the
    /// driver fails.
    pub(crate) fn allocate(&self, bytes: usize) -> Result<CUdeviceptr> {
        if bytes == 0 {
            return Ok(0);
        }
        if bytes > self.context.memory {
            return Err(Error::OutOfMemory { bytes });
        }
        let _entered = self.enter()?;
        let mut result = self.try_allocate(bytes);
        if let (Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY), Some(pool)) = (result, &self.context.pool)
        {
            // The free memory in the pool may be fragmented. Return it to the GPU and retry.
            self.wait()?;
            pool.trim()?;
            result = self.try_allocate(bytes);
        }
        result.map_err(|failed| match failed {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::OutOfMemory { bytes },
            failed => failure(failed, "allocating device memory"),
        })
    }

    fn try_allocate(&self, bytes: usize) -> std::result::Result<CUdeviceptr, CUresult> {
        if let Some(pool) = &self.context.pool {
            return pool.allocate(bytes, self.stream.cu_stream());
        }
        let mut ptr = 0;
        // SAFETY: the context is current, and `ptr` outlives the call.
        match unsafe { sys::cuMemAlloc_v2(&raw mut ptr, bytes) } {
            CUresult::CUDA_SUCCESS => Ok(ptr),
            failed => Err(failed),
        }
    }

    /// Frees memory from `allocate`, in stream order. A failure is not reported here: the device
    /// stays failed, so the next call reports it.
    pub(crate) fn free(&self, ptr: CUdeviceptr) {
        if ptr == 0 {
            return;
        }
        let Ok(_entered) = self.enter() else { return };
        // SAFETY: only a buffer's drop calls this, once, with the address that `allocate` returned.
        unsafe {
            match self.context.pool {
                Some(_) => sys::cuMemFreeAsync(ptr, self.stream.cu_stream()),
                None => sys::cuMemFree_v2(ptr),
            };
        }
    }

    /// Waits for all enqueued work, then returns unused memory to the GPU.
    pub(crate) fn trim(&self) -> Result<()> {
        let _entered = self.enter()?;
        self.synchronize()?;
        self.context.pool.as_ref().map_or(Ok(()), |pool| pool.trim())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Enqueued work may still use the pool and cuBLAS, which the context may be about to drop.
        // A failed device has nothing to wait for.
        let _ = self.wait();
        self.entered = self.enter().ok();
    }
}

/// `CU_STREAM_PER_THREAD`
const PER_THREAD_STREAM: usize = 2;
