//! The backend handle: a GPU and a stream on it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytemuck::Pod;
use cudarc::driver::{CudaContext, CudaStream};
use flashrnn_core::{Error, Result};
use flashrnn_gpu::Family;

use crate::device::Device;
use crate::device::context::Context;
use crate::driver::current::keep;
use crate::driver::pool::MemoryUse;
use crate::driver::{device_count, failure, library};
use crate::kernels::Kernels;
use crate::kernels::clusters::active_clusters;
use crate::kernels::compile::Arch;
use crate::memory::Buffer;
use crate::passes::time_loop::TimeLoops;
use crate::programs::Waits;
use crate::select::Gpu;

/// Runs recurrent networks on one stream of an NVIDIA GPU. Clones share the GPU and the stream;
/// [`Cuda::with_stream`] shares only the GPU.
///
/// Calls enqueue work on the stream and return. Only `synchronize`, `download`, `trim`, uploads
/// from pinned memory, allocations when memory is short, and dropping the last handle and plan of a
/// stream wait for it. A failure on the GPU may therefore be reported by a later call than the one
/// that caused it. Every call restores the CUDA context that was current on the caller's thread.
#[derive(Clone)]
pub struct Cuda {
    pub(crate) device: Arc<Device>,
    pub(crate) kernels: Arc<Kernels>,
    pub(crate) loops: Arc<TimeLoops>,
    pub(crate) family: Family,
    pub(crate) waits: Waits,
    pub(crate) limits: Limits,
    pub(crate) wait_limit: Option<Duration>,
}

/// Limits of the kernels that plans choose. Tests set them.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of blocks per cluster; 0 leaves all heads to the grid kernels.
    pub cluster: usize,
    /// The cluster size of grid kernels whose pass can have clusters. `None` leaves the choice to
    /// the plan.
    pub grid_cluster: Option<usize>,
    /// Maximum number of blocks of a grid kernel.
    pub multiprocessors: usize,
}

impl Limits {
    /// Sets no limits.
    pub const NONE: Self =
        Self { cluster: usize::MAX, grid_cluster: None, multiprocessors: usize::MAX };
}

/// How long a block of a grid kernel waits for another. Much longer than the time for which another
/// process may have the GPU meanwhile.
const WAIT_LIMIT: Duration = Duration::from_secs(20);

impl Cuda {
    /// Opens the first GPU, with a new stream.
    ///
    /// # Errors
    /// [`Error::Device`] if the driver or a GPU is missing or too old. The message says which, and
    /// what to do about it.
    pub fn new() -> Result<Self> {
        Self::with_device(0)
    }

    /// Opens the GPU with the driver's index `ordinal`, with a new stream.
    ///
    /// # Errors
    /// Same as [`Cuda::new`].
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

    /// Opens the GPU of `stream` and uses that stream. All work is enqueued there, in order with
    /// the caller's own.
    ///
    /// # Errors
    /// Same as [`Cuda::new`], and [`Error::Argument`] if `stream` is CUDA's per-thread stream,
    /// which is a different stream on every thread.
    pub fn on_stream(stream: Arc<CudaStream>) -> Result<Self> {
        library::driver()?;
        let context = Arc::new(Context::new(stream.context())?);
        let device = Arc::new(Device::new(context, stream)?);
        Ok(Self {
            kernels: Arc::new(Kernels::new(device.clone())),
            device,
            loops: Arc::default(),
            family: Family::Auto,
            waits: Waits::default(),
            limits: Limits::NONE,
            wait_limit: Some(WAIT_LIMIT),
        })
    }

    /// Returns a handle of the same GPU on another stream of the same context. The handles share
    /// the context, the loaded kernels and the memory pool, so a kernel is compiled and loaded once
    /// for all of them. Buffers and packed weights belong to the stream they were made on.
    ///
    /// # Errors
    /// [`Error::Argument`] if `stream` belongs to another context or is CUDA's per-thread stream,
    /// [`Error::Device`] if the driver fails.
    pub fn with_stream(&self, stream: Arc<CudaStream>) -> Result<Self> {
        let context = &self.device.context;
        if stream.context().cu_ctx() != context.cuda.cu_ctx() {
            let why = "it belongs to another CUDA context than the handle";
            return Err(Error::Argument { tensor: "stream", why });
        }
        let device = Arc::new(Device::new(context.clone(), stream)?);
        Ok(Self {
            kernels: Arc::new(self.kernels.for_device(device.clone())),
            device,
            loops: Arc::default(),
            ..self.clone()
        })
    }

    /// Returns a handle of the same GPU on a new stream, as [`Cuda::with_stream`] does.
    ///
    /// # Errors
    /// [`Error::Device`] if the driver fails.
    pub fn with_new_stream(&self) -> Result<Self> {
        let _kept = keep()?;
        self.with_stream(new_stream(self.device.stream.context())?)
    }

    /// Returns a handle of the same GPU and stream whose plans use the kernels of `family`.
    #[must_use]
    pub fn with_family(self, family: Family) -> Self {
        Self { family, ..self }
    }

    /// Returns a handle of the same GPU and stream whose fused kernels synchronise as `waits`
    /// specifies.
    #[doc(hidden)]
    #[must_use]
    pub fn with_waits(self, waits: Waits) -> Self {
        Self { waits, ..self }
    }

    /// Returns a handle of the same GPU and stream whose plans choose kernels within `limits`.
    #[doc(hidden)]
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Returns a handle of the same GPU and stream with another limit for the waits inside a grid
    /// kernel, whose blocks wait for each other in every step. If a block waits longer, because
    /// something has stopped another one, the whole kernel stops waiting, its results are NaN, and a
    /// later call on the stream returns [`Error::Device`], once. The default is 20 seconds. `None`
    /// waits for ever, which a debugger needs.
    #[must_use]
    pub fn with_wait_limit(self, limit: Option<Duration>) -> Self {
        Self { wait_limit: limit, ..self }
    }

    /// Returns a handle of the same GPU and stream whose grid kernels, all of whose blocks must run
    /// at the same time, use at most `count` multiprocessors. Set it if another kernel or process
    /// keeps the others busy for long. A plan whose R does not fit them uses per-step kernels.
    #[must_use]
    pub fn with_multiprocessors(self, count: usize) -> Self {
        let limits = Limits { multiprocessors: count, ..self.limits };
        Self { limits, ..self }
    }

    /// Returns the properties that drive kernel selection, within the handle's limits.
    pub(crate) fn gpu(&self) -> Gpu {
        let gpu = self.device.context.gpu(active_clusters(&self.device.context));
        let Limits { cluster, grid_cluster, multiprocessors } = self.limits;
        Gpu {
            cluster: gpu.cluster.min(cluster),
            grid_cluster,
            multiprocessors: gpu.multiprocessors.min(multiprocessors),
            ..gpu
        }
    }

    /// Returns the stream that all work is enqueued on.
    #[must_use]
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.device.stream
    }

    /// Returns the GPU's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.device.context.name
    }

    /// Returns the GPU's compute capability.
    #[must_use]
    pub fn arch(&self) -> Arch {
        self.device.context.arch
    }

    /// Returns the latest CUDA version that the driver supports, such as `13.0`.
    #[must_use]
    pub fn driver_version(&self) -> &str {
        &self.device.context.driver
    }

    /// Allocates a buffer of `len` elements whose values are unspecified, for outputs of a call.
    /// [`Backend::alloc`](flashrnn_core::Backend::alloc) also sets them to zero, which takes time
    /// on the GPU.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if there is too little memory, [`Error::Device`] if the driver fails.
    pub fn alloc_uninit<P: Pod + Send + Sync>(&self, len: usize) -> Result<Buffer<P>> {
        self.device.alloc(len)
    }

    /// Returns how much device memory the buffers of this context use: those of this handle, of its
    /// clones, and of the handles made from it for other streams.
    ///
    /// # Errors
    /// [`Error::Device`] if the driver fails, [`Error::Unsupported`] if the GPU has no memory
    /// pools.
    pub fn memory(&self) -> Result<MemoryUse> {
        let _entered = self.device.enter()?;
        let pool = self.device.context.pool.as_ref().ok_or_else(|| Error::Unsupported {
            backend: "cuda",
            what: "counting memory".into(),
            why: "this device has no memory pools".into(),
        })?;
        pool.memory_use()
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

fn new_stream(context: &Arc<CudaContext>) -> Result<Arc<CudaStream>> {
    context.new_stream().map_err(|e| failure(e.0, "creating a stream"))
}

fn no_device() -> String {
    "the NVIDIA driver sees no CUDA device: is there one, does CUDA_VISIBLE_DEVICES hide it, and \
     was the container started with it?"
        .into()
}
