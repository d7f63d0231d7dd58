//! The shared libraries of CUDA: the driver, NVRTC and cuBLAS.
//!
//! cudarc loads the driver when it first calls it, and panics if it or one of its functions is
//! missing. So this crate loads each library first (`loader.rs`) and reports what is missing as an
//! error that says how to install it. NVRTC and cuBLAS are called in the library that was loaded
//! here (`nvrtc.rs`, `cublas.rs`).

use std::ffi::c_int;
use std::sync::OnceLock;

use flashrnn_core::{Error, Result};
use libloading::Library;

use crate::driver::loader::Wanted;

/// The minimum CUDA version of the driver, encoded as by `cuDriverGetVersion`: 12.3, the first with
/// programmatic edges in graphs.
const MIN_DRIVER: i32 = 12030;

const DRIVER: Wanted = Wanted {
    stems: &["cuda", "nvcuda"],
    companion: None,
    functions: &[
        "cuCtxGetCurrent",
        "cuCtxSetCurrent",
        "cuCtxSynchronize",
        "cuDeviceGet",
        "cuDeviceGetAttribute",
        "cuDeviceGetCount",
        "cuDeviceGetName",
        "cuDevicePrimaryCtxRelease_v2",
        "cuDevicePrimaryCtxRetain",
        "cuDeviceTotalMem_v2",
        "cuEventCreate",
        "cuEventDestroy_v2",
        "cuEventRecord",
        "cuFuncGetAttribute",
        "cuFuncSetAttribute",
        "cuGetErrorString",
        "cuGraphDestroy",
        "cuGraphExecDestroy",
        "cuGraphInstantiateWithFlags",
        "cuGraphLaunch",
        "cuInit",
        "cuLaunchKernelEx",
        "cuMemAllocFromPoolAsync",
        "cuMemAlloc_v2",
        "cuMemFreeAsync",
        "cuMemFreeHost",
        "cuMemFree_v2",
        "cuMemHostAlloc",
        "cuMemHostGetDevicePointer_v2",
        "cuMemPoolCreate",
        "cuMemPoolDestroy",
        "cuMemPoolGetAttribute",
        "cuMemPoolSetAttribute",
        "cuMemPoolTrimTo",
        "cuMemcpyDtoHAsync_v2",
        "cuMemcpyHtoDAsync_v2",
        "cuMemsetD8Async",
        "cuModuleGetFunction",
        "cuModuleLoadData",
        "cuModuleUnload",
        "cuOccupancyMaxActiveBlocksPerMultiprocessor",
        "cuOccupancyMaxActiveClusters",
        "cuPointerGetAttributes",
        "cuStreamBeginCapture_v2",
        "cuStreamCreate",
        "cuStreamDestroy_v2",
        "cuStreamEndCapture",
        "cuStreamIsCapturing",
        "cuStreamSynchronize",
        "cuStreamWaitEvent",
        "cuThreadExchangeStreamCaptureMode",
    ],
    advice: "install NVIDIA's driver, for CUDA 12.3 or later (in a container, start it with the \
             GPUs passed through)",
};

const NVRTC: Wanted = Wanted {
    stems: &["nvrtc"],
    companion: Some("nvrtc-builtins"),
    functions: &[
        "nvrtcCompileProgram",
        "nvrtcCreateProgram",
        "nvrtcDestroyProgram",
        "nvrtcGetCUBIN",
        "nvrtcGetCUBINSize",
        "nvrtcGetErrorString",
        // Not called. NVRTC 11, which is too old, lacks it.
        "nvrtcGetLTOIR",
        "nvrtcGetNumSupportedArchs",
        "nvrtcGetPTX",
        "nvrtcGetPTXSize",
        "nvrtcGetProgramLog",
        "nvrtcGetProgramLogSize",
        "nvrtcGetSupportedArchs",
        "nvrtcVersion",
    ],
    advice: "install NVRTC 12 or later, from the CUDA toolkit or by `pip install \
             nvidia-cuda-nvrtc`, no newer than the driver's CUDA, and let LD_LIBRARY_PATH (PATH on \
             Windows) or CUDA_PATH lead to it",
};

const CUBLAS: Wanted = Wanted {
    stems: &["cublas"],
    companion: Some("cublasLt"),
    functions: &[
        "cublasCreate_v2",
        "cublasDestroy_v2",
        "cublasGemmBatchedEx_64",
        "cublasSetAtomicsMode",
        "cublasSetMathMode",
        "cublasSetStream_v2",
        "cublasSetWorkspace_v2",
    ],
    advice: "install cuBLAS 12 or later, from the CUDA toolkit or by `pip install nvidia-cublas`, \
             no newer than the driver's CUDA, and let LD_LIBRARY_PATH (PATH on Windows) or \
             CUDA_PATH lead to it",
};

/// Loads the driver's library and returns the CUDA version that it supports, encoded as by
/// `cuDriverGetVersion`.
///
/// # Errors
/// [`Error::Device`] if the library is missing, is too old, or lacks a function.
pub(crate) fn driver() -> Result<i32> {
    static FOUND: OnceLock<(Library, i32)> = OnceLock::new();
    if let Some((_, version)) = FOUND.get() {
        return Ok(*version);
    }
    let library = DRIVER.open().map_err(|why| DRIVER.missing(&why))?;
    // Check the version before the functions: an old driver may lack some, but its version makes
    // the better message.
    let version = driver_version(&library).map_err(|why| DRIVER.missing(&why))?;
    check_driver_version(version)?;
    DRIVER.check(&library).map_err(|why| DRIVER.missing(&why))?;
    Ok(FOUND.get_or_init(|| (library, version)).1)
}

/// Loads NVRTC.
///
/// # Errors
/// [`Error::Device`] if the library is missing or lacks a function.
pub(crate) fn nvrtc() -> Result<&'static Library> {
    static FOUND: OnceLock<Library> = OnceLock::new();
    NVRTC.find(&FOUND)
}

/// Loads cuBLAS.
///
/// # Errors
/// [`Error::Device`] if the library is missing or lacks a function.
pub(crate) fn cublas() -> Result<&'static Library> {
    static FOUND: OnceLock<Library> = OnceLock::new();
    CUBLAS.find(&FOUND)
}

/// Returns the driver's version, without using cudarc.
fn driver_version(library: &Library) -> std::result::Result<i32, String> {
    const NAME: &str = "cuDriverGetVersion";
    type GetVersion = unsafe extern "C" fn(*mut c_int) -> c_int;
    let mut version = 0;
    // SAFETY: the driver's function of this name has this type, and `version` outlives the call.
    let result = unsafe {
        let function =
            library.get::<GetVersion>(NAME.as_bytes()).map_err(|_| DRIVER.lacks(NAME))?;
        function(&raw mut version)
    };
    if result == 0 {
        Ok(version)
    } else {
        Err(format!("{NAME} of {} failed (error {result})", DRIVER.name()))
    }
}

/// Checks that the driver is new enough.
///
/// # Errors
/// [`Error::Device`] with both versions, if it is too old.
fn check_driver_version(version: i32) -> Result<()> {
    if version >= MIN_DRIVER {
        return Ok(());
    }
    Err(Error::device(format!(
        "the NVIDIA driver is too old: it supports CUDA {}, and 12.3 or later is needed (graphs \
         with programmatic edges); install driver 545 or later",
        version_name(version)
    )))
}

/// Formats a version, such as `12.3` for 12030.
pub(crate) fn version_name(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Path, PathBuf};

    /// Returns the files in `folder` and its subfolders.
    fn files_below(folder: &Path) -> Vec<PathBuf> {
        let entries = folder.read_dir().unwrap().map(|entry| entry.unwrap().path());
        entries
            .flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] })
            .collect()
    }

    /// Checks that the lists contain every function of the three libraries that this crate's
    /// sources name, because calling a missing function panics.
    #[test]
    fn every_function_that_is_called_is_looked_for() {
        let lists = [DRIVER, NVRTC, CUBLAS].map(|library| library.functions).concat();
        let mut called = 0;
        for file in files_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
            let source = std::fs::read_to_string(file).unwrap();
            for (at, _) in source.match_indices("sys::").chain(source.match_indices("cublas::")) {
                let path = &source[at..];
                let name = path
                    .split(|c: char| !c.is_alphanumeric() && c != '_')
                    .nth(2)
                    .unwrap_or_default();
                let after = path[path.find(name).unwrap() + name.len()..].chars().next();
                let is_type =
                    name.ends_with("_t") || ["nvrtcProgram", "nvrtcResult"].contains(&name);
                let function =
                    !is_type && ["cu", "nvrtc"].iter().any(|prefix| name.starts_with(prefix));
                if function && matches!(after, Some('(' | ',' | ')')) {
                    called += 1;
                    assert!(lists.contains(&name), "{name} is called and not looked for");
                }
            }
        }
        assert!(called > 50, "only {called} calls found");
    }

    #[test]
    fn old_drivers_are_refused() {
        assert!(check_driver_version(12030).is_ok());
        assert!(check_driver_version(13000).is_ok());
        let error = check_driver_version(12020).unwrap_err().to_string();
        assert!(
            error.contains("12.2") && error.contains("12.3") && error.contains("too old"),
            "{error}"
        );
    }
}
