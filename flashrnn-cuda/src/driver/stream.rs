//! Streams and events, and the side stream of a device.

use std::ptr;

use cudarc::driver::sys::{self, CUevent, CUstream};
use flashrnn_core::Result;

use crate::driver::check;

/// A second stream, for work that may run at the same time as a device's main stream. Events fork
/// it from the main stream and join it again; the host waits for neither.
///
/// Threads may share it without a lock: re-recording an event can only make a waiter wait longer.
pub(crate) struct SideStream {
    stream: Stream,
    /// Recorded on the main stream, before the work that runs at the same time.
    fork: Event,
    /// Recorded on the side stream, after its work.
    join: Event,
}

impl SideStream {
    /// Creates the stream and its events. The device's context must be current.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { stream: Stream::new()?, fork: Event::new()?, join: Event::new()? })
    }

    /// Enqueues the work of `main` on the stream `main_stream`, and that of `side` on the side
    /// stream, which is passed to it. `side` runs after everything enqueued on the main stream
    /// before this call, and before everything enqueued there after it. The context must be
    /// current.
    ///
    /// The memory that `side` uses must outlive this call and be allocated before it: a buffer that
    /// `side` makes would be allocated and freed in the order of the main stream.
    pub(crate) fn run(
        &self,
        main_stream: CUstream,
        main: impl FnOnce() -> Result<()>,
        side: impl FnOnce(CUstream) -> Result<()>,
    ) -> Result<()> {
        self.fork.record(main_stream)?;
        // Before the side work, so that it does not queue for the device behind that.
        main()?;
        self.fork.hold(self.stream.0)?;
        let enqueued = side(self.stream.0);
        // Joined after a failure too: what was enqueued before it still runs.
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
        // SAFETY: the caller has made the context current, and the pointer is to a handle that
        // lives through the call.
        check(unsafe { sys::cuStreamCreate(&raw mut stream, flags) }, "creating a stream")?;
        Ok(Self(stream))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: created by `new` and destroyed only here.
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
        // SAFETY: the caller has made the context current, and the pointer is to a handle that
        // lives through the call.
        check(unsafe { sys::cuEventCreate(&raw mut event, flags) }, "creating an event")?;
        Ok(Self(event))
    }

    /// Moves the event to after everything enqueued on `stream` so far.
    fn record(&self, stream: CUstream) -> Result<()> {
        // SAFETY: both are alive, of the same context.
        check(unsafe { sys::cuEventRecord(self.0, stream) }, "recording an event")
    }

    /// Makes everything enqueued on `stream` from now on wait for the event.
    fn hold(&self, stream: CUstream) -> Result<()> {
        // SAFETY: both are alive, of the same context.
        check(unsafe { sys::cuStreamWaitEvent(stream, self.0, 0) }, "letting a stream wait")
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created by `new` and destroyed only here. The driver keeps it for streams that
        // still wait.
        unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}
