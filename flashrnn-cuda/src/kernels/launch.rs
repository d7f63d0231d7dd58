//! Loaded modules, their kernels, and kernel launches.

use std::ffi::{CString, c_int, c_void};
use std::ptr;
use std::sync::Arc;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{self, CUfunction_attribute as FunctionAttribute, CUresult, CUstream};
use flashrnn_core::{Error, Result};

use crate::device::context::Context;
use crate::driver::current::{Restoring, enter};
use crate::driver::{check, failure};

/// Machine code loaded into a context.
pub(crate) struct Module {
    module: sys::CUmodule,
    context: Restoring<Arc<CudaContext>>,
    /// The name of the program, for messages.
    name: String,
    /// Maximum shared memory of a block in bytes.
    shared_memory: usize,
    /// Number of multiprocessors.
    multiprocessors: usize,
    /// Whether the GPU supports clusters and early launches.
    hopper: bool,
}

// SAFETY: the driver's functions on modules may be called from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Loads a cubin made by NVRTC.
    pub(crate) fn load(context: &Context, cubin: &[u8], name: &str) -> Result<Self> {
        let _entered = context.enter()?;
        let mut module = ptr::null_mut();
        // SAFETY: the image is an ELF file made by NVRTC, which contains its own length.
        let result = unsafe { sys::cuModuleLoadData(&raw mut module, cubin.as_ptr().cast()) };
        let unknown = [CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU, CUresult::CUDA_ERROR_INVALID_IMAGE];
        if unknown.contains(&result) {
            return Err(Error::device(format!(
                "the driver can't load what NVRTC compiled ({name}): is NVRTC newer than the \
                 driver? Install a newer driver, or an NVRTC no newer than the driver's CUDA"
            )));
        }
        check(result, "loading a module")?;
        Ok(Self {
            module,
            context: Restoring::new(Arc::clone(&context.cuda)),
            name: name.into(),
            shared_memory: context.shared_memory,
            multiprocessors: context.multiprocessors,
            hopper: context.arch.major >= 9,
        })
    }

    /// Returns the kernel `name`, which the source declares `extern "C"`. The kernel may use
    /// all of the shared memory of a block.
    pub(crate) fn kernel(self: &Arc<Self>, name: &str) -> Result<Kernel> {
        let _entered = enter(&self.context)?;
        let missing = || Error::device(format!("{} has no kernel {name}", self.name));
        let symbol = CString::new(name).map_err(|_| missing())?;
        let mut function = ptr::null_mut();
        // SAFETY: the module is alive, and the name is null-terminated.
        match unsafe { sys::cuModuleGetFunction(&raw mut function, self.module, symbol.as_ptr()) } {
            CUresult::CUDA_SUCCESS => {}
            CUresult::CUDA_ERROR_NOT_FOUND => return Err(missing()),
            failed => return Err(failure(failed, "looking up a kernel")),
        }
        let mut fixed: c_int = 0;
        let asked = FunctionAttribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        // SAFETY: the module keeps the function alive, and `fixed` outlives the call.
        let result = unsafe { sys::cuFuncGetAttribute(&raw mut fixed, asked, function) };
        check(result, "asking a kernel's attributes")?;
        let dynamic = self.shared_memory.saturating_sub(fixed.unsigned_abs() as usize);
        let set = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is alive.
        let result = unsafe { sys::cuFuncSetAttribute(function, set, dynamic as c_int) };
        check(result, "allowing shared memory")?;
        if self.hopper {
            let set = FunctionAttribute::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED;
            // SAFETY: as above.
            check(unsafe { sys::cuFuncSetAttribute(function, set, 1) }, "allowing large clusters")?;
        }
        Ok(Kernel { function, module: self.clone(), name: name.into() })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let Ok(_entered) = enter(&self.context) else { return };
        // SAFETY: no kernel of this module is running, and no graph refers to it. Kernels and
        // stores keep the module alive, the store of every stream waits for its stream before it
        // drops its modules, and the owner of a graph drops it before the graph's kernels.
        unsafe { sys::cuModuleUnload(self.module) };
    }
}

/// A kernel, ready to be launched.
#[derive(Clone)]
pub(crate) struct Kernel {
    function: sys::CUfunction,
    /// Keeps the function loaded.
    module: Arc<Module>,
    name: String,
}

// SAFETY: the driver's functions on kernels may be called from any thread.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// The configuration of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Launch {
    /// Number of blocks in each dimension. If one of them is 0, nothing is launched.
    pub grid: [u32; 3],
    /// Threads per block.
    pub block: u32,
    /// Dynamic shared memory per block in bytes.
    pub shared: u32,
    /// Whether the kernel may start before the previous kernel on the stream has ended, if the GPU
    /// supports that (compute capability 9.0). Such a kernel must itself wait
    /// (`griddepcontrol.wait`) before it accesses anything that the previous kernel writes.
    pub early: bool,
    /// Blocks per cluster; 1 for no clusters.
    pub cluster: u32,
    /// Whether all blocks must run at the same time. The launch fails if the GPU has no room for
    /// them.
    pub cooperative: bool,
}

impl Launch {
    /// Describes a launch that starts after the previous kernel, without dynamic shared memory or
    /// clusters.
    pub(crate) fn new(grid: [u32; 3], block: u32) -> Self {
        Self { grid, block, shared: 0, early: false, cluster: 1, cooperative: false }
    }

    /// Returns the driver's description. It points to `attributes`.
    fn config(
        &self,
        stream: CUstream,
        attributes: &mut [sys::CUlaunchAttribute],
    ) -> sys::CUlaunchConfig {
        let [x, y, z] = self.grid;
        sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: self.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: self.shared,
            hStream: stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        }
    }

    fn attributes(&self, hopper: bool) -> Vec<sys::CUlaunchAttribute> {
        let attribute = |id, value| sys::CUlaunchAttribute { id, pad: [0; 4], value };
        let mut attributes = Vec::with_capacity(2);
        if self.early && hopper {
            let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
            value.programmaticStreamSerializationAllowed = 1;
            attributes.push(attribute(
                sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                value,
            ));
        }
        if self.cluster > 1 {
            let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
            value.clusterDim =
                sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: self.cluster, y: 1, z: 1 };
            attributes.push(attribute(
                sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
                value,
            ));
        }
        if self.cooperative {
            let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
            value.cooperative = 1;
            attributes
                .push(attribute(sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE, value));
        }
        attributes
    }
}

impl Kernel {
    /// Returns how many blocks of `launch` the GPU runs at the same time.
    pub(crate) fn resident_blocks(&self, launch: &Launch) -> Result<usize> {
        let _entered = enter(&self.module.context)?;
        if launch.cluster > 1 {
            return self.resident_clusters(launch).map(|n| n * launch.cluster as usize);
        }
        let mut blocks: c_int = 0;
        // SAFETY: the function is alive, and `blocks` outlives the call.
        let result = unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                &raw mut blocks,
                self.function,
                launch.block as c_int,
                launch.shared as usize,
            )
        };
        check(result, "asking how many blocks fit")?;
        Ok(blocks.unsigned_abs() as usize * self.module.multiprocessors)
    }

    fn resident_clusters(&self, launch: &Launch) -> Result<usize> {
        let mut attributes = launch.attributes(self.module.hopper);
        let config = launch.config(ptr::null_mut(), &mut attributes);
        let mut clusters: c_int = 0;
        // SAFETY: the function is alive, and `clusters` and `attributes` outlive the call.
        let result = unsafe {
            sys::cuOccupancyMaxActiveClusters(&raw mut clusters, self.function, &raw const config)
        };
        check(result, "asking how many clusters fit")?;
        Ok(clusters.unsigned_abs() as usize)
    }

    /// Enqueues the kernel on `stream`, with pointers to its arguments in order.
    ///
    /// # Safety
    /// There must be one argument per parameter of the kernel, of the same size. Memory that the
    /// kernel accesses through its arguments must be valid until it has run, and nothing else on
    /// the device may access what it writes until then. If `stream` records a
    /// [`Graph`](super::graph::Graph), this must hold at every launch of the graph.
    pub(crate) unsafe fn launch(
        &self,
        stream: CUstream,
        launch: &Launch,
        args: &mut [*mut c_void],
    ) -> Result<()> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        let mut attributes = launch.attributes(self.module.hopper);
        let config = launch.config(stream, &mut attributes);
        // SAFETY: the function is alive, and the caller guarantees that the arguments are valid.
        let result = unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                self.function,
                args.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        if result == CUresult::CUDA_SUCCESS {
            return Ok(());
        }
        Err(failure(
            result,
            &format!("launching {} of {} with {launch:?}", self.name, self.module.name),
        ))
    }
}

/// Returns the pointer to an argument for [`Kernel::launch`].
pub(crate) fn argument<P>(value: &mut P) -> *mut c_void {
    std::ptr::from_mut(value).cast()
}

/// Returns a one-dimensional grid of `blocks` blocks.
///
/// # Errors
/// [`Error::Unsupported`] if a grid cannot have that many blocks.
pub(crate) fn grid(blocks: usize) -> Result<[u32; 3]> {
    match u32::try_from(blocks) {
        Ok(blocks) if blocks <= i32::MAX as u32 => Ok([blocks, 1, 1]),
        _ => Err(Error::Unsupported {
            backend: "cuda",
            what: format!("a launch of {blocks} blocks"),
            why: "a grid has at most 2147483647".into(),
        }),
    }
}
