//! The context of a GPU, shared by the handles of all its streams.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};
use flashrnn_core::{Error, Result};
use flashrnn_gpu::lock;

use crate::device::blas::Blas;
use crate::driver::current::{Entered, Restoring, enter};
use crate::driver::pool::Pool;
use crate::driver::{check, failure, library};
use crate::kernels::compile::Arch;
use crate::select::{CLUSTER_SIZES, Gpu};

/// A CUDA context with its memory pool, its cuBLAS handle and the GPU's properties. Devices,
/// buffers and plans keep it alive.
pub(crate) struct Context {
    // The order of these fields is the order in which they must be dropped.
    blas: OnceLock<Mutex<Blas>>,
    /// `None` if the device has no memory pools.
    pub(crate) pool: Option<Pool>,
    pub(crate) cuda: Restoring<Arc<CudaContext>>,
    pub(crate) arch: Arch,
    /// The GPU's name.
    pub(crate) name: String,
    /// The latest CUDA version that the driver supports.
    pub(crate) driver: String,
    pub(crate) multiprocessors: usize,
    /// Maximum shared memory of a block in bytes, if its kernel opts in to more than the default.
    pub(crate) shared_memory: usize,
    /// The GPU's memory in bytes.
    pub(crate) memory: usize,
    /// How many clusters of these sizes run at the same time, once the driver has been asked.
    pub(crate) clusters: OnceLock<[usize; CLUSTER_SIZES.len()]>,
}

impl Context {
    pub(crate) fn new(cuda: &Arc<CudaContext>) -> Result<Self> {
        let driver = library::driver()?;
        let _entered = enter(cuda)?;
        let attribute = |attribute: Attribute| -> Result<usize> {
            let mut value = 0;
            // SAFETY: the device is the context's own, and `value` outlives the call.
            let result =
                unsafe { sys::cuDeviceGetAttribute(&raw mut value, attribute, cuda.cu_device()) };
            check(result, "reading the device's attributes")?;
            Ok(usize::try_from(value).unwrap_or(0))
        };
        let arch = Arch {
            major: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32,
            minor: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32,
        };
        let name = cuda.name().map_err(|e| failure(e.0, "reading the device's name"))?;
        check_arch(arch, &name)?;
        let pools = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? != 0;
        Ok(Self {
            blas: OnceLock::new(),
            pool: if pools { Some(Pool::new(cuda.ordinal())?) } else { None },
            arch,
            name,
            driver: library::version_name(driver),
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_memory: attribute(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )?,
            memory: cuda
                .total_mem()
                .map_err(|e| failure(e.0, "reading the device's memory size"))?,
            clusters: OnceLock::new(),
            cuda: Restoring::new(cuda.clone()),
        })
    }

    /// Makes the context current on this thread until the guard is dropped.
    pub(crate) fn enter(&self) -> Result<Entered> {
        enter(&self.cuda)
    }

    /// Returns the properties that drive kernel selection. `clusters` is how many clusters run at
    /// the same time.
    pub(crate) fn gpu(&self, clusters: [usize; CLUSTER_SIZES.len()]) -> Gpu {
        Gpu {
            // A cluster of 16 blocks needs a large part of a data-centre GPU, which a MIG slice may
            // not have.
            cluster: match self.arch.major {
                ..9 => 1,
                9 | 10 if self.multiprocessors >= 100 => 16,
                _ => 8,
            },
            clusters,
            grid_cluster: None,
            multiprocessors: self.multiprocessors,
            shared_memory: self.shared_memory,
        }
    }

    /// Locks the cuBLAS handle, creating it at the first use. Must not be called while a graph is
    /// being recorded, because creating it allocates.
    pub(crate) fn blas(&self) -> Result<MutexGuard<'_, Blas>> {
        if let Some(blas) = self.blas.get() {
            return Ok(lock(blas));
        }
        let made = Blas::new(&self.cuda)?;
        // If another thread was faster, its handle is kept and this one is dropped.
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
