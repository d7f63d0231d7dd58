//! A second stream, for what can run at the same time as the work on a device's own.

use std::ptr;

use cudarc::driver::sys::{self, CUevent, CUstream};
use flashrnn_core::Result;

use crate::driver::check;

/// A stream beside a device's own, which it leaves and joins by events, without the host.
///
/// Threads may share it without a lock: re-recording an event can only make a waiter wait longer.
pub(crate) struct Beside {
    stream: Stream,
    /// On the device's stream, before what runs beside it.
    left: Event,
    /// On this one, after that.
    done: Event,
}

impl Beside {
    /// The device's context is current.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { stream: Stream::new()?, left: Event::new()?, done: Event::new()? })
    }

    /// Enqueues `ahead`, on `stream`, and beside it `aside`, on the stream it is given. `aside`
    /// comes after all that `stream` had before, and before all that it gets after this call. The
    /// context is current.
    ///
    /// The memory that `aside` uses outlives this call and was allocated before it: a buffer of its
    /// own would be allocated and freed in the order of the device's stream.
    pub(crate) fn run(
        &self,
        stream: CUstream,
        ahead: impl FnOnce() -> Result<()>,
        aside: impl FnOnce(CUstream) -> Result<()>,
    ) -> Result<()> {
        self.left.record(stream)?;
        // First, so that it doesn't wait for room on the device.
        ahead()?;
        self.left.hold(self.stream.0)?;
        let enqueued = aside(self.stream.0);
        // Where it failed too: what it did enqueue still runs.
        self.done.record(self.stream.0)?;
        self.done.hold(stream)?;
        enqueued
    }
}

/// A stream that no other waits for by itself.
pub(crate) struct Stream(pub CUstream);

// SAFETY: the driver's functions on streams may be called from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// The context is current.
    pub(crate) fn new() -> Result<Self> {
        let mut stream = ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the context is current, and the pointer is to a handle that lives through the
        // call.
        check(unsafe { sys::cuStreamCreate(&raw mut stream, flags) }, "creating a stream")?;
        Ok(Self(stream))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed only here.
        unsafe { sys::cuStreamDestroy_v2(self.0) };
    }
}

/// A place in a stream.
struct Event(CUevent);

// SAFETY: the driver's functions on events may be called from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    fn new() -> Result<Self> {
        let mut event = ptr::null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: the context is current, and the pointer is to a handle that lives through the
        // call.
        check(unsafe { sys::cuEventCreate(&raw mut event, flags) }, "creating an event")?;
        Ok(Self(event))
    }

    /// The place after all that `stream` has now.
    fn record(&self, stream: CUstream) -> Result<()> {
        // SAFETY: both are alive, of the same context.
        check(unsafe { sys::cuEventRecord(self.0, stream) }, "marking a place in a stream")
    }

    /// Lets what `stream` gets from now on wait for the place.
    fn hold(&self, stream: CUstream) -> Result<()> {
        // SAFETY: as above.
        check(unsafe { sys::cuStreamWaitEvent(stream, self.0, 0) }, "letting a stream wait")
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed only here. The driver keeps it for the streams that
        // still wait.
        unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}
