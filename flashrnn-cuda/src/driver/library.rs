//! Whether the libraries that CUDA needs are there. cudarc loads them at its first call and panics
//! where one is missing; so each is looked for here first, and its absence becomes an error that
//! says what is missing and how to get it.

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::ffi::c_int;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::driver::sys::CUDA_VERSION;
use flashrnn_core::{Error, Result};
use libloading::Library;

/// The oldest CUDA whose driver will do, as `cuDriverGetVersion` counts: 12.3, the first with
/// programmatic edges in graphs.
pub(crate) const OLDEST_DRIVER: i32 = 12030;

/// A shared library: what it is called, what it must have, how to get it.
struct Wanted {
    /// Its name without the platform's prefix and suffix; several where platforms differ.
    stems: &'static [&'static str],
    /// Prefix of the names of libraries that it loads itself, and finds only where the loader
    /// looks.
    companion: Option<&'static str>,
    /// Every function that this crate calls, or cudarc for it: cudarc panics where one is missing.
    functions: &'static [&'static str],
    /// Completes "… is missing: ".
    advice: &'static str,
}

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
        "cuMemFree_v2",
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
        "cuPointerGetAttributes",
        "cuStreamBeginCapture_v2",
        "cuStreamCreate",
        "cuStreamDestroy_v2",
        "cuStreamEndCapture",
        "cuStreamSynchronize",
        "cuStreamWaitEvent",
    ],
    advice: "install NVIDIA's driver, for CUDA 12.3 or later (in a container, start it with the GPUs passed through)",
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
        // Not called: NVRTC 11 lacks it.
        "nvrtcGetLTOIR",
        "nvrtcGetNumSupportedArchs",
        "nvrtcGetPTX",
        "nvrtcGetPTXSize",
        "nvrtcGetProgramLog",
        "nvrtcGetProgramLogSize",
        "nvrtcGetSupportedArchs",
        "nvrtcVersion",
    ],
    advice: "install NVRTC 12 or later, from the CUDA toolkit or by `pip install nvidia-cuda-nvrtc`, no newer than the \
             driver's CUDA, and let LD_LIBRARY_PATH (PATH on Windows) or CUDA_PATH lead to it",
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
    advice: "install cuBLAS 12 or later, from the CUDA toolkit or by `pip install nvidia-cublas`, no newer than the \
             driver's CUDA, and let LD_LIBRARY_PATH (PATH on Windows) or CUDA_PATH lead to it",
};

/// Makes sure that the driver's library can be called, and returns the driver's version as
/// `cuDriverGetVersion` counts.
///
/// # Errors
/// [`Error::Device`] where it is missing, too old, or lacks a function.
pub(crate) fn driver() -> Result<i32> {
    static FOUND: OnceLock<(Library, i32)> = OnceLock::new();
    if let Some((_, version)) = FOUND.get() {
        return Ok(*version);
    }
    let library = DRIVER.load(&folders()).map_err(|why| DRIVER.missing(&why))?;
    // First, since an old driver's functions are fewer too, and its version says more.
    let version = driver_version(&library).map_err(|why| DRIVER.missing(&why))?;
    check_driver_version(version)?;
    DRIVER.check(&library).map_err(|why| DRIVER.missing(&why))?;
    Ok(FOUND.get_or_init(|| (library, version)).1)
}

/// Makes sure that NVRTC can be called.
pub(crate) fn nvrtc() -> Result<()> {
    static FOUND: OnceLock<Library> = OnceLock::new();
    NVRTC.find(&FOUND)
}

/// Makes sure that cuBLAS can be called.
pub(crate) fn cublas() -> Result<()> {
    static FOUND: OnceLock<Library> = OnceLock::new();
    CUBLAS.find(&FOUND)
}

/// Asks the driver for its version, without cudarc.
fn driver_version(library: &Library) -> std::result::Result<i32, String> {
    const NAME: &str = "cuDriverGetVersion";
    type GetVersion = unsafe extern "C" fn(*mut c_int) -> c_int;
    let mut version = 0;
    // SAFETY: the driver's function of this name has this type, and the pointer is to an integer
    // that lives through the call.
    let result = unsafe {
        let function =
            library.get::<GetVersion>(NAME.as_bytes()).map_err(|_| lacks(&DRIVER, NAME))?;
        function(&raw mut version)
    };
    if result == 0 {
        Ok(version)
    } else {
        Err(format!("{NAME} of {} failed (error {result})", DRIVER.name()))
    }
}

fn lacks(library: &Wanted, function: &str) -> String {
    format!("{} has no {function}: it is too old or not NVIDIA's", library.name())
}

impl Wanted {
    /// Loads the library once for the life of the process. What is missing today is looked for
    /// again at the next call.
    fn find(&self, found: &OnceLock<Library>) -> Result<()> {
        if found.get().is_none() {
            let library = self.load(&folders()).map_err(|why| self.missing(&why))?;
            self.check(&library).map_err(|why| self.missing(&why))?;
            // Another thread may have been faster; then this handle is closed and the library stays
            // loaded.
            let _ = found.set(library);
        }
        Ok(())
    }

    /// The file name that most platforms of this kind know it by.
    fn name(&self) -> String {
        format!("{DLL_PREFIX}{}{DLL_SUFFIX}", self.stems[0])
    }

    fn missing(&self, why: &str) -> Error {
        Error::device(format!("{why}: {}", self.advice))
    }

    /// Opens the first file that the loader knows. Where it knows none, they are looked for in
    /// `folders`: a library once opened by its path is found by its own name from then on, by
    /// cudarc too.
    fn load(&self, folders: &[PathBuf]) -> std::result::Result<Library, String> {
        let names: Vec<String> = self.stems.iter().flat_map(|stem| names(stem)).collect();
        let known = || names.iter().find_map(open);
        let in_folder = |folder: &PathBuf| {
            self.open_companions(folder);
            let _by_path = names.iter().find_map(|name| open(folder.join(name)))?;
            known()
        };
        let found = known().or_else(|| folders.iter().find_map(in_folder));
        found.ok_or_else(|| format!("{} is missing", self.name()))
    }

    /// Checks that every function that will be called is there.
    fn check(&self, library: &Library) -> std::result::Result<(), String> {
        // SAFETY: the addresses are only looked up, not called.
        let absent = |name: &&&str| unsafe { library.get::<*const ()>(name.as_bytes()) }.is_err();
        self.functions.iter().find(absent).map_or(Ok(()), |name| Err(lacks(self, name)))
    }

    /// Opens the companions in `folder`, for the life of the process.
    fn open_companions(&self, folder: &Path) {
        let Some(companion) = self.companion else { return };
        let beginning = format!("{DLL_PREFIX}{companion}");
        for file in folder.read_dir().into_iter().flatten().flatten() {
            if file.file_name().to_string_lossy().starts_with(&beginning) {
                std::mem::forget(open(file.path()));
            }
        }
    }
}

/// Where toolkits lie that the loader may not know of.
fn folders() -> Vec<PathBuf> {
    let roots = ["CUDA_PATH", "CUDA_HOME", "CUDA_ROOT"]
        .into_iter()
        .filter_map(std::env::var_os)
        .map(PathBuf::from);
    roots
        .chain([PathBuf::from("/usr/local/cuda")])
        .flat_map(|root| ["lib64", "lib", "bin"].map(|folder| root.join(folder)))
        .filter(|folder| folder.is_dir())
        .collect()
}

/// The file names a library may have, a part of those cudarc tries and in its order: what is found
/// here, cudarc finds.
fn names(stem: &str) -> Vec<String> {
    let major = CUDA_VERSION / 1000;
    let minor = CUDA_VERSION % 1000 / 10;
    [
        format!("{DLL_PREFIX}{stem}{DLL_SUFFIX}"),
        format!("{DLL_PREFIX}{stem}64_{major}{DLL_SUFFIX}"),
        format!("{DLL_PREFIX}{stem}64_{major}{minor}_0{DLL_SUFFIX}"),
        format!("{DLL_PREFIX}{stem}64_12{DLL_SUFFIX}"),
        format!("{DLL_PREFIX}{stem}64_{major}0_0{DLL_SUFFIX}"),
        format!("{DLL_PREFIX}{stem}{DLL_SUFFIX}.{major}"),
        format!("{DLL_PREFIX}{stem}{DLL_SUFFIX}.12"),
        format!("{DLL_PREFIX}{stem}{DLL_SUFFIX}.1"),
    ]
    .into()
}

/// Opens a library by its name or path. On Unix all that it needs of others is looked up now: a
/// function that is found missing at its first call ends the process.
fn open(path: impl AsRef<Path>) -> Option<Library> {
    #[cfg(unix)]
    {
        use libloading::os::unix::{self, RTLD_LOCAL, RTLD_NOW};
        // SAFETY: NVIDIA's libraries have initialisers that may run at any time on any thread.
        unsafe { unix::Library::open(Some(path.as_ref()), RTLD_NOW | RTLD_LOCAL) }
            .ok()
            .map(Library::from)
    }
    #[cfg(not(unix))]
    // SAFETY: as above.
    unsafe { Library::new(path.as_ref()) }.ok()
}

/// Whether the driver is new enough.
///
/// # Errors
/// [`Error::Device`] that names both versions.
pub(crate) fn check_driver_version(version: i32) -> Result<()> {
    if version >= OLDEST_DRIVER {
        return Ok(());
    }
    Err(Error::device(format!(
        "the NVIDIA driver is too old: it supports CUDA {}, and 12.3 or later is needed (graphs with programmatic edges); \
         install driver 545 or later",
        version_name(version)
    )))
}

/// `12.3` for 12030.
pub(crate) fn version_name(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(stem: &'static str, functions: &'static [&'static str]) -> Wanted {
        Wanted {
            stems: Box::leak(Box::new([stem])),
            companion: None,
            functions,
            advice: "install it",
        }
    }

    #[test]
    fn a_missing_library_is_named_with_the_way_to_get_it() {
        let error =
            wanted("flashrnn-no-such", &["f"]).find(&OnceLock::new()).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("device: {DLL_PREFIX}flashrnn-no-such{DLL_SUFFIX} is missing: install it")
        );
    }

    /// With libgcc_s.so.1, which Rust's own library needs on this system.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn a_library_that_lacks_a_function_is_named() {
        let find = |functions| wanted("gcc_s", functions).find(&OnceLock::new());
        let error = find(&["_Unwind_Resume", "no_such"]).unwrap_err().to_string();
        assert!(error.starts_with("device: libgcc_s.so has no no_such: it is too old"), "{error}");
        assert!(find(&["_Unwind_Resume"]).is_ok());
    }

    fn files_below(folder: &Path) -> Vec<PathBuf> {
        let entries = folder.read_dir().unwrap().map(|entry| entry.unwrap().path());
        entries
            .flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] })
            .collect()
    }

    /// Every function of the three libraries that this crate's sources name is in the lists: cudarc
    /// panics where one is missing.
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
