//! A device, the stream that everything is enqueued on, and what is made once for both.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fmt;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};
use cudarc::driver::{CudaContext, CudaStream};
use flashrnn_core::{Error, Result};

use crate::beside::Beside;
use crate::blas::Blas;
use crate::cache;
use crate::compile::{Arch, Nvrtc, Program};
use crate::disk_cache::Key;
use crate::launch::Module;
use crate::library;
use crate::memory::Pool;
use crate::select::Gpu;
use crate::time_loop::TimeLoops;

/// An NVIDIA GPU and a stream on it. Clones share both.
///
/// Calls enqueue on the stream and return; only `synchronize` and `download` wait. A failure on the device may therefore be
/// reported by a later call than the one that caused it.
#[derive(Clone)]
pub struct Cuda {
    pub(crate) device: Arc<Device>,
    pub(crate) loops: Arc<TimeLoops>,
    pub(crate) family: Family,
    pub(crate) waits: Waits,
}

/// Which kernels plans use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Family {
    /// Fused where they can be.
    #[default]
    Auto,
    /// All time steps in one kernel; a plan that can't is an error.
    Fused,
    /// A kernel a step.
    Alternating,
}

/// How the warps of a fused kernel wait for each other: what it gives must not change. For tests.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Waits {
    #[default]
    Plain,
    /// Every warp waits now and then for a random time too.
    Delayed,
    /// Where a cluster waits for an mbarrier, each block waits for a barrier too: racecheck knows only this one.
    Block,
}

impl Cuda {
    /// The first device, with a stream of its own.
    ///
    /// # Errors
    /// [`Error::Device`] where the driver or a device is missing, or too old: it says which, and what to do.
    pub fn new() -> Result<Self> {
        Self::with_device(0)
    }

    /// The device that the driver numbers `ordinal`, with a stream of its own.
    ///
    /// # Errors
    /// As [`Cuda::new`].
    pub fn with_device(ordinal: usize) -> Result<Self> {
        let count = device_count()?;
        if ordinal >= count {
            return Err(Error::Device(match count {
                0 => no_device(),
                _ => format!("there is no CUDA device {ordinal}: there are {count}, numbered from 0"),
            }));
        }
        let context = CudaContext::new(ordinal).map_err(|e| failure(e.0, "opening the device"))?;
        Self::on_stream(context.new_stream().map_err(|e| failure(e.0, "creating a stream"))?)
    }

    /// The device of a stream that the caller has: everything is enqueued there, in order with the caller's own work.
    ///
    /// # Errors
    /// As [`Cuda::new`].
    pub fn on_stream(stream: Arc<CudaStream>) -> Result<Self> {
        Ok(Self {
            device: Arc::new(Device::new(stream)?),
            loops: Arc::default(),
            family: Family::Auto,
            waits: Waits::default(),
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
        &self.device.name
    }

    /// The device's compute capability.
    #[must_use]
    pub fn arch(&self) -> Arch {
        self.device.arch
    }

    /// The newest CUDA that the driver supports, such as `13.0`.
    #[must_use]
    pub fn driver_version(&self) -> &str {
        &self.device.driver
    }
}

/// What [`Cuda`]'s clones, buffers and plans share.
pub(crate) struct Device {
    // In the order in which they must be dropped.
    blas: OnceLock<Mutex<Blas>>,
    modules: Modules,
    pub(crate) pool: Option<Pool>,
    /// For what runs beside the stream's work; a call joins it to the stream again.
    pub(crate) beside: Beside,
    pub(crate) stream: Arc<CudaStream>,
    pub(crate) context: Arc<CudaContext>,
    pub(crate) arch: Arch,
    pub(crate) name: String,
    driver: String,
    pub(crate) multiprocessors: usize,
    /// Bytes of shared memory that a block may have, where its kernel asks for more than the default.
    pub(crate) shared_memory: usize,
    /// Bytes of memory on the device.
    pub(crate) memory: usize,
}

/// The modules loaded so far. An entry is locked while it is made, so that nobody makes it twice.
type Modules = Mutex<HashMap<Key, Arc<Mutex<Option<Arc<Module>>>>>>;

impl Device {
    fn new(stream: Arc<CudaStream>) -> Result<Self> {
        let driver = driver_version()?;
        let context = stream.context().clone();
        enter(&context)?;
        let attribute = |attribute: Attribute| -> Result<usize> {
            let mut value = 0;
            // SAFETY: the device is the context's own, and the pointer is to an integer that lives through the call.
            let result = unsafe { sys::cuDeviceGetAttribute(&raw mut value, attribute, context.cu_device()) };
            check(result, "reading the device's attributes")?;
            Ok(usize::try_from(value).unwrap_or(0))
        };
        let arch = Arch {
            major: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32,
            minor: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32,
        };
        let name = context.name().map_err(|e| failure(e.0, "reading the device's name"))?;
        check_arch(arch, &name)?;
        let pools = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? != 0;
        Ok(Self {
            blas: OnceLock::new(),
            modules: Mutex::default(),
            pool: if pools { Some(Pool::new(context.ordinal())?) } else { None },
            beside: Beside::new()?,
            arch,
            name,
            driver: library::version_name(driver),
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_memory: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            memory: context.total_mem().map_err(|e| failure(e.0, "reading the device's memory size"))?,
            stream,
            context,
        })
    }

    /// What of it decides on kernels.
    pub(crate) fn gpu(&self) -> Gpu {
        Gpu {
            // 16 blocks need a large part of a data centre's GPU; a slice of one may not have it.
            cluster: match self.arch.major {
                ..9 => 1,
                9 | 10 if self.multiprocessors >= 100 => 16,
                _ => 8,
            },
            multiprocessors: self.multiprocessors,
            shared_memory: self.shared_memory,
        }
    }

    /// Makes the device's context this thread's current one. Every public method begins with it.
    pub(crate) fn enter(&self) -> Result<()> {
        enter(&self.context)
    }

    /// The module that `program` compiles to: from memory, from the cache on disk, or compiled now. Where several threads ask
    /// for the same program, one makes it and the others wait for it.
    pub(crate) fn module(&self, program: &Program) -> Result<Arc<Module>> {
        let key = cache::key(program, self.arch, Nvrtc::get()?);
        let slot = lock(&self.modules).entry(key).or_default().clone();
        let mut slot = lock(&slot);
        if let Some(module) = &*slot {
            return Ok(module.clone());
        }
        self.enter()?;
        let cubin = cache::cubin(program, self.arch)?;
        let module = Arc::new(Module::load(self, &cubin, &program.name)?);
        *slot = Some(module.clone());
        Ok(module)
    }

    /// cuBLAS, made at its first use. Not while a graph is being recorded: making it allocates.
    pub(crate) fn blas(&self) -> Result<MutexGuard<'_, Blas>> {
        if let Some(blas) = self.blas.get() {
            return Ok(lock(blas));
        }
        self.enter()?;
        let made = Blas::new(self.arch)?;
        // Another thread may have been faster; then this one's goes.
        Ok(lock(self.blas.get_or_init(|| Mutex::new(made))))
    }

    /// Waits until everything enqueued has run.
    pub(crate) fn synchronize(&self) -> Result<()> {
        self.enter()?;
        // SAFETY: the stream is alive as long as the device.
        check(unsafe { sys::cuStreamSynchronize(self.stream.cu_stream()) }, "waiting for the device")
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Kernels may still run whose modules are about to be unloaded. A device that failed has nothing to wait for.
        let _ = self.synchronize();
    }
}

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = &self.device;
        f.debug_struct("Cuda")
            .field("device", &device.name)
            .field("arch", &device.arch)
            .field("stream", &device.stream.cu_stream())
            .finish_non_exhaustive()
    }
}

/// How many CUDA devices there are.
fn device_count() -> Result<usize> {
    driver_version()?;
    // SAFETY: the library is there; this may be called any number of times.
    let result = unsafe { sys::cuInit(0) };
    match result {
        CUresult::CUDA_SUCCESS => {}
        CUresult::CUDA_ERROR_NO_DEVICE => return Ok(0),
        failed => return Err(failure(failed, "starting the NVIDIA driver (cuInit)")),
    }
    let mut count = 0;
    // SAFETY: the pointer is to an integer that lives through the call.
    check(unsafe { sys::cuDeviceGetCount(&raw mut count) }, "counting the devices")?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// The driver's version, where it is new enough.
fn driver_version() -> Result<i32> {
    library::driver()?;
    let mut version = 0;
    // SAFETY: the pointer is to an integer that lives through the call.
    check(unsafe { sys::cuDriverGetVersion(&raw mut version) }, "asking for the driver's version")?;
    library::check_driver_version(version)?;
    Ok(version)
}

fn no_device() -> String {
    "the NVIDIA driver sees no CUDA device: is there one, does CUDA_VISIBLE_DEVICES hide it, and was the container \
     started with it?"
        .into()
}

fn check_arch(arch: Arch, name: &str) -> Result<()> {
    if arch >= Arch::OLDEST {
        return Ok(());
    }
    Err(Error::Device(format!("{name} has {arch}, and 8.0 (Ampere) or later is needed")))
}

/// Makes `context` this thread's current one.
pub(crate) fn enter(context: &CudaContext) -> Result<()> {
    let mut current = ptr::null_mut();
    // SAFETY: the pointer is to a handle that lives through the call.
    check(unsafe { sys::cuCtxGetCurrent(&raw mut current) }, "asking for the current context")?;
    if current == context.cu_ctx() {
        return Ok(());
    }
    // SAFETY: the context is alive as long as the reference to it.
    check(unsafe { sys::cuCtxSetCurrent(context.cu_ctx()) }, "entering the device's context")
}

/// Locks. A thread that panicked while it held the lock has left nothing half done that matters here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Turns the driver's result into ours. `what` was being done.
pub(crate) fn check(result: CUresult, what: &str) -> Result<()> {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        failed => Err(failure(failed, what)),
    }
}

/// The error for a failed call of the driver.
pub(crate) fn failure(result: CUresult, what: &str) -> Error {
    let mut text = ptr::null();
    // SAFETY: the pointer is to a pointer that lives through the call; the driver stores a static text or null.
    let described = unsafe { sys::cuGetErrorString(result, &raw mut text) };
    if described != CUresult::CUDA_SUCCESS || text.is_null() {
        return Error::Device(format!("{what}: {result:?}"));
    }
    // SAFETY: as above; zero-terminated.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    Error::Device(format!("{what}: {text} ({result:?})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_devices_are_refused() {
        assert!(check_arch(Arch { major: 8, minor: 0 }, "A100").is_ok());
        assert!(check_arch(Arch { major: 12, minor: 1 }, "newer").is_ok());
        let error = check_arch(Arch { major: 7, minor: 5 }, "Tesla T4").unwrap_err().to_string();
        assert!(error.contains("Tesla T4") && error.contains("7.5") && error.contains("8.0"), "{error}");
    }
}
