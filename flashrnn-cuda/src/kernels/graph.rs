//! Graphs: launches that are recorded once and enqueued together.

use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUstream};
use flashrnn_core::Result;

use crate::device::Device;
use crate::driver::check;
use crate::driver::stream::Stream;

/// An executable graph, which may be launched any number of times.
pub(crate) struct Graph {
    graph: sys::CUgraphExec,
    device: Arc<Device>,
}

// SAFETY: the handle may be used from any thread. The driver orders launches of the same graph.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Graph {
    /// Records the work that `enqueue` enqueues on the new stream passed to it, without running it.
    /// An early launch ([`Launch::early`](super::launch::Launch::early)) becomes a programmatic
    /// edge.
    pub(crate) fn record(
        device: &Arc<Device>,
        enqueue: impl FnOnce(CUstream) -> Result<()>,
    ) -> Result<Self> {
        let _entered = device.enter()?;
        let capture = Capture::begin()?;
        let enqueued = enqueue(capture.0.0);
        let graph = capture.end();
        enqueued?;
        let graph = graph?;
        let mut executable = ptr::null_mut();
        // SAFETY: the graph is alive, and `executable` outlives the call.
        let result = unsafe { sys::cuGraphInstantiateWithFlags(&raw mut executable, graph.0, 0) };
        check(result, "instantiating a graph")?;
        Ok(Self { graph: executable, device: device.clone() })
    }

    /// Enqueues the recorded work. The context must be current.
    pub(crate) fn launch(&self, stream: CUstream) -> Result<()> {
        // SAFETY: the graph is alive. The recorder of each kernel guarantees that its arguments are
        // valid at every launch.
        check(unsafe { sys::cuGraphLaunch(self.graph, stream) }, "launching a graph")
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let Ok(_entered) = self.device.enter() else { return };
        // SAFETY: `record` created the graph, and only this destroys it. The driver lets a running
        // graph finish.
        unsafe { sys::cuGraphExecDestroy(self.graph) };
    }
}

/// A stream in capture mode. Dropping the stream aborts a capture that has not ended.
struct Capture(Stream);

impl Capture {
    fn begin() -> Result<Self> {
        let stream = Stream::new()?;
        // Relaxed mode captures this stream and restricts no other call, on this thread or another.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is alive.
        check(unsafe { sys::cuStreamBeginCapture_v2(stream.0, mode) }, "recording a graph")?;
        Ok(Self(stream))
    }

    fn end(&self) -> Result<Captured> {
        let mut graph = ptr::null_mut();
        // SAFETY: the stream is alive and in capture mode.
        check(unsafe { sys::cuStreamEndCapture(self.0.0, &raw mut graph) }, "recording a graph")?;
        Ok(Captured(graph))
    }
}

/// A graph as captured. The executable graph does not need it.
struct Captured(sys::CUgraph);

impl Drop for Captured {
    fn drop(&mut self) {
        // SAFETY: `end` created the graph, and only this destroys it.
        unsafe { sys::cuGraphDestroy(self.0) };
    }
}
