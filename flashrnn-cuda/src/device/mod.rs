//! A handle of a device: the stream that everything is enqueued on, and how plans choose their
//! kernels.

pub(crate) mod blas;
pub(crate) mod context;

use std::fmt;
use std::sync::Arc;

use cudarc::driver::sys;
use cudarc::driver::{CudaContext, CudaStream};
use flashrnn_core::{Error, Result};
use flashrnn_gpu::Family;

use crate::device::context::Shared;
use crate::driver::current::{Entered, enter, keep};
use crate::driver::library;
use crate::driver::stream::Beside;
use crate::driver::{check, device_count, failure};
use crate::kernels::compile::{Arch, Program};
use crate::kernels::launch::Module;
use crate::passes::time_loop::TimeLoops;

/// An NVIDIA GPU and a stream on it. Clones share both; [`Cuda::with_stream`] shares the GPU alone.
///
/// Calls enqueue on the stream and return; only `synchronize`, `download` and `trim` wait. A
/// failure on the device may therefore be reported by a later call than the one that caused it.
/// Every call leaves the CUDA context current that the caller had made so.
#[derive(Clone)]
pub struct Cuda {
    pub(crate) device: Arc<Device>,
    pub(crate) loops: Arc<TimeLoops>,
    pub(crate) family: Family,
    pub(crate) waits: Waits,
}

/// How the warps of a fused kernel wait for each other, which must not change its results. For
/// tests.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Waits {
    #[default]
    Plain,
    /// Every warp waits now and then for a random time too.
    Delayed,
    /// Where a cluster waits for an mbarrier, each block waits for a barrier too: racecheck knows
    /// only this one.
    Block,
}

impl Cuda {
    /// Opens the first device, with a stream of its own.
    ///
    /// # Errors
    /// [`Error::Device`] where the driver or a device is missing, or too old: it says which, and
    /// what to do.
    pub fn new() -> Result<Self> {
        Self::with_device(0)
    }

    /// Opens the device that the driver numbers `ordinal`, with a stream of its own.
    ///
    /// # Errors
    /// As [`Cuda::new`].
    pub fn with_device(ordinal: usize) -> Result<Self> {
        let count = device_count()?;
        if ordinal >= count {
            return Err(Error::device(match count {
                0 => no_device(),
                _ => {
                    format!("there is no CUDA device {ordinal}: there are {count}, numbered from 0")
                }
            }));
        }
        let _kept = keep()?;
        let context = CudaContext::new(ordinal).map_err(|e| failure(e.0, "opening the device"))?;
        Self::on_stream(new_stream(&context)?)
    }

    /// Uses a stream that the caller has: everything is enqueued there, in order with the caller's
    /// own work.
    ///
    /// # Errors
    /// As [`Cuda::new`]; [`Error::Argument`] for CUDA's per-thread stream, which is another one on
    /// every thread.
    pub fn on_stream(stream: Arc<CudaStream>) -> Result<Self> {
        library::driver()?;
        let shared = Arc::new(Shared::new(stream.context())?);
        Self::of(shared, stream, Family::Auto, Waits::default())
    }

    /// Makes a second handle of the same device on another stream of the same context. It shares
    /// context, modules, compiled kernels and the pool of memory with this one, so that what one
    /// stream has compiled and loaded the other has too. Buffers and packed weights stay with the
    /// stream they were made on.
    ///
    /// # Errors
    /// [`Error::Argument`] where the stream belongs to another context, or is CUDA's per-thread
    /// stream; [`Error::Device`].
    pub fn with_stream(&self, stream: Arc<CudaStream>) -> Result<Self> {
        if stream.context().cu_ctx() != self.device.shared.context.cu_ctx() {
            let why = "it belongs to another CUDA context than the handle";
            return Err(Error::Argument { tensor: "stream", why });
        }
        Self::of(self.device.shared.clone(), stream, self.family, self.waits)
    }

    /// Makes a second handle as [`Cuda::with_stream`], on a new stream.
    ///
    /// # Errors
    /// [`Error::Device`]
    pub fn with_new_stream(&self) -> Result<Self> {
        let _kept = keep()?;
        self.with_stream(new_stream(self.device.stream.context())?)
    }

    fn of(
        shared: Arc<Shared>,
        stream: Arc<CudaStream>,
        family: Family,
        waits: Waits,
    ) -> Result<Self> {
        Ok(Self {
            device: Arc::new(Device::new(shared, stream)?),
            loops: Arc::default(),
            family,
            waits,
        })
    }

    /// The same device and stream, with plans of these kernels.
    #[must_use]
    pub fn with_family(self, family: Family) -> Self {
        Self { family, ..self }
    }

    /// The same with fused kernels that wait like this.
    #[doc(hidden)]
    #[must_use]
    pub fn with_waits(self, waits: Waits) -> Self {
        Self { waits, ..self }
    }

    /// The stream that everything is enqueued on.
    #[must_use]
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.device.stream
    }

    /// The device's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.device.shared.name
    }

    /// The device's compute capability.
    #[must_use]
    pub fn arch(&self) -> Arch {
        self.device.shared.arch
    }

    /// The newest CUDA that the driver supports, such as `13.0`.
    #[must_use]
    pub fn driver_version(&self) -> &str {
        &self.device.shared.driver
    }
}

/// What [`Cuda`]'s clones, buffers and plans share: a stream, and the device that it is on.
pub(crate) struct Device {
    // In the order in which they must be dropped.
    /// For work beside the stream's; a call joins it to the stream again.
    pub(crate) beside: Beside,
    pub(crate) stream: Arc<CudaStream>,
    /// While the fields above are dropped: their context is current.
    entered: Option<Entered>,
    pub(crate) shared: Arc<Shared>,
}

/// Identifies a context and a stream of it, in whose order memory is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    context: usize,
    stream: usize,
}

impl Device {
    fn new(shared: Arc<Shared>, stream: Arc<CudaStream>) -> Result<Self> {
        if stream.cu_stream() as usize == PER_THREAD_STREAM {
            let why =
                "CUDA's per-thread stream is another one on every thread; use a stream of its own";
            return Err(Error::Argument { tensor: "stream", why });
        }
        let _entered = shared.enter()?;
        Ok(Self { beside: Beside::new()?, stream, entered: None, shared })
    }

    /// Makes the device's context current on this thread until the guard is dropped. Every public
    /// method begins with it.
    pub(crate) fn enter(&self) -> Result<Entered> {
        enter(&self.shared.context)
    }

    /// Where this handle's memory is valid. A live stream's address is unique within its context.
    pub(crate) fn place(&self) -> Place {
        Place {
            context: self.shared.context.cu_ctx() as usize,
            stream: self.stream.cu_stream() as usize,
        }
    }

    /// As [`Shared::module`].
    pub(crate) fn module(&self, program: &Program) -> Result<Arc<Module>> {
        self.shared.module(program)
    }

    /// Waits until everything enqueued has run.
    pub(crate) fn synchronize(&self) -> Result<()> {
        let _entered = self.enter()?;
        // SAFETY: the stream is alive as long as the device.
        check(
            unsafe { sys::cuStreamSynchronize(self.stream.cu_stream()) },
            "waiting for the device",
        )
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Kernels may still run whose modules are about to be unloaded. A device that failed has
        // nothing to wait for.
        let _ = self.synchronize();
        self.entered = self.enter().ok();
    }
}

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cuda")
            .field("device", &self.name())
            .field("arch", &self.arch())
            .field("stream", &self.stream().cu_stream())
            .finish_non_exhaustive()
    }
}

/// `CU_STREAM_PER_THREAD`
const PER_THREAD_STREAM: usize = 2;

fn new_stream(context: &Arc<CudaContext>) -> Result<Arc<CudaStream>> {
    context.new_stream().map_err(|e| failure(e.0, "creating a stream"))
}

fn no_device() -> String {
    "the NVIDIA driver sees no CUDA device: is there one, does CUDA_VISIBLE_DEVICES hide it, and was the container \
     started with it?"
        .into()
}
