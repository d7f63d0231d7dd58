//! Streams, events, and the side stream of a device.

use std::ptr;

use cudarc::driver::sys::{self, CUevent, CUstream};
use flashrnn_core::Result;

use crate::driver::check;

/// A second stream, for work that may run concurrently with a device's main stream. It forks from
/// the main stream at one event and joins it at another; the host does not wait.
///
/// Threads may share it without a lock, because re-recording an event can only make a waiter wait
/// longer.
pub(crate) struct SideStream {
    stream: Stream,
    /// Recorded on the main stream, before the concurrent work.
    fork: Event,
    /// Recorded on the side stream, after its work.
    join: Event,
}

impl SideStream {
    /// Creates the stream and its events. The device's context must be current.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { stream: Stream::new()?, fork: Event::new()?, join: Event::new()? })
    }

    /// Enqueues the work of `main` on the stream `main_stream`, and the work of `side` on the side
    /// stream, which is passed to it. `side` runs after all work enqueued on the main stream before
    /// this call, and before all work enqueued there after this call. The context must be current.
    ///
    /// The memory that `side` uses must be allocated before this call and outlive it. `side` must
    /// not allocate, because buffers are allocated and freed in the order of the main stream.
    pub(crate) fn run(
        &self,
        main_stream: CUstream,
        main: impl FnOnce() -> Result<()>,
        side: impl FnOnce(CUstream) -> Result<()>,
    ) -> Result<()> {
        self.fork.record(main_stream)?;
        // Enqueue the main work first, so that the side work does not delay it.
        main()?;
        self.fork.hold(self.stream.0)?;
        let enqueued = side(self.stream.0);
        // Join even if `side` failed, because what it enqueued before the failure still runs.
        self.join.record(self.stream.0)?;
        self.join.hold(main_stream)?;
        enqueued
    }
}

/// A stream that does not synchronise with the default stream.
pub(crate) struct Stream(pub CUstream);

// SAFETY: the driver's functions on streams may be called from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// Creates a stream. The context must be current.
    pub(crate) fn new() -> Result<Self> {
        let mut stream = ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the caller has made the context current, and `stream` outlives the call.
        check(unsafe { sys::cuStreamCreate(&raw mut stream, flags) }, "creating a stream")?;
        Ok(Self(stream))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: `new` created the stream, and only this destroys it.
        unsafe { sys::cuStreamDestroy_v2(self.0) };
    }
}

/// A point in a stream that other streams can wait for.
struct Event(CUevent);

// SAFETY: the driver's functions on events may be called from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// Creates an event without timing. The context must be current.
    fn new() -> Result<Self> {
        let mut event = ptr::null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: the caller has made the context current, and `event` outlives the call.
        check(unsafe { sys::cuEventCreate(&raw mut event, flags) }, "creating an event")?;
        Ok(Self(event))
    }

    /// Moves the event behind all work enqueued on `stream` so far.
    fn record(&self, stream: CUstream) -> Result<()> {
        // SAFETY: both are alive and of the same context.
        check(unsafe { sys::cuEventRecord(self.0, stream) }, "recording an event")
    }

    /// Makes all work enqueued on `stream` from now on wait for the event.
    fn hold(&self, stream: CUstream) -> Result<()> {
        // SAFETY: both are alive and of the same context.
        check(unsafe { sys::cuStreamWaitEvent(stream, self.0, 0) }, "letting a stream wait")
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: `new` created the event, and only this destroys it. The driver keeps it alive for
        // streams that still wait.
        unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}
