//! What all streams of a device share: its context, what it can do, and everything that is made
//! once for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};
use flashrnn_core::{Error, Result};
use flashrnn_gpu::disk_cache::Key;
use flashrnn_gpu::lock;

use crate::device::blas::Blas;
use crate::driver::current::{Entered, Restoring, enter};
use crate::driver::library;
use crate::driver::pool::Pool;
use crate::driver::{check, failure};
use crate::kernels::cache;
use crate::kernels::compile::{Arch, Nvrtc, Program};
use crate::kernels::launch::Module;
use crate::select::step::Gpu;

/// A device's context and what is made once in it. The handles of all its streams, their buffers
/// and plans keep it alive.
pub(crate) struct Shared {
    // In the order in which they must be dropped.
    blas: OnceLock<Mutex<Blas>>,
    modules: Modules,
    pub(crate) pool: Option<Pool>,
    pub(crate) context: Restoring<Arc<CudaContext>>,
    pub(crate) arch: Arch,
    pub(crate) name: String,
    pub(crate) driver: String,
    pub(crate) multiprocessors: usize,
    /// Maximum shared memory of a block in bytes, where its kernel asks for more than the default.
    pub(crate) shared_memory: usize,
    /// Bytes of memory on the device.
    pub(crate) memory: usize,
}

/// The modules loaded so far. An entry is locked while it is made, so that nobody makes it twice.
type Modules = Mutex<HashMap<Key, Arc<Mutex<Option<Arc<Module>>>>>>;

impl Shared {
    pub(crate) fn new(context: &Arc<CudaContext>) -> Result<Self> {
        let driver = library::driver()?;
        let _entered = enter(context)?;
        let attribute = |attribute: Attribute| -> Result<usize> {
            let mut value = 0;
            // SAFETY: the device is the context's own, and the pointer is to an integer that lives
            // through the call.
            let result = unsafe {
                sys::cuDeviceGetAttribute(&raw mut value, attribute, context.cu_device())
            };
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
            arch,
            name,
            driver: library::version_name(driver),
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_memory: attribute(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )?,
            memory: context
                .total_mem()
                .map_err(|e| failure(e.0, "reading the device's memory size"))?,
            context: Restoring::new(context.clone()),
        })
    }

    /// Makes the context current on this thread until the guard is dropped.
    pub(crate) fn enter(&self) -> Result<Entered> {
        enter(&self.context)
    }

    /// The properties that kernels are selected by.
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

    /// The module that `program` compiles to: from memory, from the cache on disk, or compiled now.
    /// Where several threads ask for the same program, one makes it and the others wait for it.
    pub(crate) fn module(&self, program: &Program) -> Result<Arc<Module>> {
        let key = cache::key(program, self.arch, Nvrtc::get()?);
        let slot = lock(&self.modules).entry(key).or_default().clone();
        let mut slot = lock(&slot);
        if let Some(module) = &*slot {
            return Ok(module.clone());
        }
        let cubin = cache::cubin(program, self.arch)?;
        let module = Arc::new(Module::load(self, &cubin, &program.name)?);
        *slot = Some(module.clone());
        Ok(module)
    }

    /// How many modules have been loaded.
    pub(crate) fn loaded(&self) -> usize {
        let slots: Vec<_> = lock(&self.modules).values().cloned().collect();
        slots.iter().filter(|slot| lock(slot).is_some()).count()
    }

    /// cuBLAS, made at its first use. Not while a graph is being recorded: making it allocates.
    pub(crate) fn blas(&self) -> Result<MutexGuard<'_, Blas>> {
        if let Some(blas) = self.blas.get() {
            return Ok(lock(blas));
        }
        let made = Blas::new(&self.context)?;
        // Another thread may have been faster; then this one's goes.
        Ok(lock(self.blas.get_or_init(|| Mutex::new(made))))
    }
}

fn check_arch(arch: Arch, name: &str) -> Result<()> {
    if arch >= Arch::OLDEST {
        return Ok(());
    }
    Err(Error::device(format!("{name} has {arch}, and 8.0 (Ampere) or later is needed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_devices_are_refused() {
        assert!(check_arch(Arch { major: 8, minor: 0 }, "A100").is_ok());
        assert!(check_arch(Arch { major: 12, minor: 1 }, "newer").is_ok());
        let error = check_arch(Arch { major: 7, minor: 5 }, "Tesla T4").unwrap_err().to_string();
        assert!(
            error.contains("Tesla T4") && error.contains("7.5") && error.contains("8.0"),
            "{error}"
        );
    }
}
