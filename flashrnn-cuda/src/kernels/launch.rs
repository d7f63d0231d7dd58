//! Modules, kernels and graphs.

use std::ffi::{CString, c_int, c_void};
use std::ptr;
use std::sync::Arc;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{self, CUfunction_attribute as FunctionAttribute, CUresult, CUstream};
use flashrnn_core::{Error, Result};

use crate::device::Device;
use crate::device::context::Shared;
use crate::driver::current::{Restoring, enter};
use crate::driver::stream::Stream;
use crate::driver::{check, failure};

/// Machine code loaded into a device's context.
pub(crate) struct Module {
    module: sys::CUmodule,
    context: Restoring<Arc<CudaContext>>,
    /// The program's name, for messages.
    name: String,
    /// Bytes of shared memory that a block may have.
    shared_memory: usize,
    /// Whether the device can start a kernel before the one before it has ended.
    early: bool,
}

// SAFETY: the driver's functions on modules may be called from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Loads a cubin.
    pub(crate) fn load(shared: &Shared, cubin: &[u8], name: &str) -> Result<Self> {
        let _entered = shared.enter()?;
        let mut module = ptr::null_mut();
        // SAFETY: the image is an ELF file, which holds its own length, as NVRTC made it.
        let result = unsafe { sys::cuModuleLoadData(&raw mut module, cubin.as_ptr().cast()) };
        let unknown = [CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU, CUresult::CUDA_ERROR_INVALID_IMAGE];
        if unknown.contains(&result) {
            return Err(Error::device(format!(
                "the driver can't load what NVRTC compiled ({name}): is NVRTC newer than the driver? Install a newer driver, \
                 or an NVRTC no newer than the driver's CUDA"
            )));
        }
        check(result, "loading a module")?;
        Ok(Self {
            module,
            context: Restoring::new(Arc::clone(&shared.context)),
            name: name.into(),
            shared_memory: shared.shared_memory,
            early: shared.arch.major >= 9,
        })
    }

    /// The kernel called `name` (`extern "C"` in the source), allowed all the shared memory there
    /// is.
    pub(crate) fn kernel(self: &Arc<Self>, name: &str) -> Result<Kernel> {
        let _entered = enter(&self.context)?;
        let missing = || Error::device(format!("{} has no kernel {name}", self.name));
        let symbol = CString::new(name).map_err(|_| missing())?;
        let mut function = ptr::null_mut();
        // SAFETY: the module is alive and the name zero-terminated.
        match unsafe { sys::cuModuleGetFunction(&raw mut function, self.module, symbol.as_ptr()) } {
            CUresult::CUDA_SUCCESS => {}
            CUresult::CUDA_ERROR_NOT_FOUND => return Err(missing()),
            failed => return Err(failure(failed, "looking up a kernel")),
        }
        let mut own: c_int = 0;
        let asked = FunctionAttribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        // SAFETY: the function is alive as long as its module, and the pointer is to an integer
        // that lives through the call.
        let result = unsafe { sys::cuFuncGetAttribute(&raw mut own, asked, function) };
        check(result, "asking a kernel's attributes")?;
        let dynamic = self.shared_memory.saturating_sub(own.unsigned_abs() as usize);
        let set = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is alive.
        check(
            unsafe { sys::cuFuncSetAttribute(function, set, dynamic as c_int) },
            "allowing shared memory",
        )?;
        if self.early {
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
        // SAFETY: kernels and graphs keep their module alive, and every handle of the device waits
        // for its stream before it lets go of the modules; so nothing runs that is being unloaded.
        unsafe { sys::cuModuleUnload(self.module) };
    }
}

/// A kernel that can be launched.
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

/// How a kernel is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Launch {
    /// Blocks. Where a number is 0, nothing is launched.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
    /// Whether it may start before the kernel before it in the stream has ended, where the device
    /// can do that (compute capability 9.0): it then waits by itself (`griddepcontrol.wait`) before
    /// it touches what that one writes.
    pub early: bool,
    /// Blocks of a cluster; 1 for none.
    pub cluster: u32,
}

impl Launch {
    /// Without dynamic shared memory, after the kernel before.
    pub(crate) fn new(grid: [u32; 3], block: u32) -> Self {
        Self { grid, block, shared: 0, early: false, cluster: 1 }
    }
}

impl Kernel {
    /// Enqueues the kernel on `stream`, with pointers to its arguments in order.
    ///
    /// # Safety
    /// There are as many arguments as the kernel's parameters, each of its parameter's size;
    /// addresses among them are valid, as far as the kernel uses them, until it has run; and
    /// nothing else on the device touches what it writes meanwhile. Where `stream` records a
    /// [`Graph`], this holds whenever the graph is launched.
    pub(crate) unsafe fn launch(
        &self,
        stream: CUstream,
        launch: &Launch,
        args: &mut [*mut c_void],
    ) -> Result<()> {
        let Launch { grid: [x, y, z], block, shared, early, cluster } = *launch;
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        let attribute = |id, set: fn(&mut sys::CUlaunchAttributeValue, u32), value| {
            let mut attribute = sys::CUlaunchAttribute {
                id,
                pad: [0; 4],
                value: sys::CUlaunchAttributeValue { pad: [0; 64] },
            };
            set(&mut attribute.value, value);
            attribute
        };
        let mut attributes = Vec::with_capacity(2);
        if early && self.module.early {
            attributes.push(attribute(
                sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                |value, _| value.programmaticStreamSerializationAllowed = 1,
                1,
            ));
        }
        if cluster > 1 {
            attributes.push(attribute(
                sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
                |value, blocks| {
                    value.clusterDim =
                        sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: blocks, y: 1, z: 1 };
                },
                cluster,
            ));
        }
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared,
            hStream: stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        // SAFETY: the function is alive; of the arguments the caller is sure.
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

/// Work recorded once, to be launched any number of times.
pub(crate) struct Graph {
    graph: sys::CUgraphExec,
    device: Arc<Device>,
}

// SAFETY: the handle may be used from any thread; that two launches don't meet is up to the driver,
// which orders launches of the same graph.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Graph {
    /// Records what `enqueue` enqueues on the stream it is given, which is none of the caller's:
    /// nothing runs. An early launch ([`Launch::early`]) becomes a programmatic edge.
    pub(crate) fn record(
        device: &Arc<Device>,
        enqueue: impl FnOnce(CUstream) -> Result<()>,
    ) -> Result<Self> {
        let _entered = device.enter()?;
        let recording = Recording::begin()?;
        let enqueued = enqueue(recording.0.0);
        let graph = recording.end();
        enqueued?;
        let graph = graph?;
        let mut executable = ptr::null_mut();
        // SAFETY: the graph is alive, and the pointer is to a handle that lives through the call.
        let result = unsafe { sys::cuGraphInstantiateWithFlags(&raw mut executable, graph.0, 0) };
        check(result, "making a graph ready to run")?;
        Ok(Self { graph: executable, device: device.clone() })
    }

    /// Enqueues the recorded work. The context is current.
    pub(crate) fn launch(&self, stream: CUstream) -> Result<()> {
        // SAFETY: the graph is alive; of each kernel's arguments whoever recorded it was sure.
        check(unsafe { sys::cuGraphLaunch(self.graph, stream) }, "launching a graph")
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let Ok(_entered) = self.device.enter() else { return };
        // SAFETY: made by `record`, destroyed only here. The driver lets a graph that runs come to
        // its end.
        unsafe { sys::cuGraphExecDestroy(self.graph) };
    }
}

/// A stream that records; a recording that never ends goes with it.
struct Recording(Stream);

impl Recording {
    fn begin() -> Result<Self> {
        let stream = Stream::new()?;
        // Relaxed: only this stream matters, whatever this and other threads do meanwhile.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is alive.
        check(unsafe { sys::cuStreamBeginCapture_v2(stream.0, mode) }, "recording a graph")?;
        Ok(Self(stream))
    }

    fn end(&self) -> Result<Recorded> {
        let mut graph = ptr::null_mut();
        // SAFETY: the stream is alive and recording.
        check(unsafe { sys::cuStreamEndCapture(self.0.0, &raw mut graph) }, "recording a graph")?;
        Ok(Recorded(graph))
    }
}

/// A graph as recorded, which the executable graph doesn't need.
struct Recorded(sys::CUgraph);

impl Drop for Recorded {
    fn drop(&mut self) {
        // SAFETY: made by `end`, destroyed only here.
        unsafe { sys::cuGraphDestroy(self.0) };
    }
}
