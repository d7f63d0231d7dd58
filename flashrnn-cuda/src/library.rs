//! Whether the libraries that CUDA needs are there. cudarc loads them at its first call and panics where one is missing;
//! so each is looked for here first, and its absence becomes an error that says what is missing and how to get it.

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::driver::sys::CUDA_VERSION;
use flashrnn_core::{Error, Result};
use libloading::Library;

/// The oldest CUDA whose driver will do, as `cuDriverGetVersion` counts: 12.3, the first with programmatic edges in graphs.
pub(crate) const OLDEST_DRIVER: i32 = 12030;

/// A shared library: what it is called, what it must have, how to get it.
struct Wanted {
    /// Its name without the platform's prefix and suffix; several where platforms differ.
    stems: &'static [&'static str],
    /// What its file names begin with that it loads itself, and finds only where the loader looks.
    companion: Option<&'static str>,
    /// A function that versions too old for us lack.
    symbol: &'static str,
    /// Completes "… is missing: ".
    advice: &'static str,
}

const DRIVER: Wanted = Wanted {
    stems: &["cuda", "nvcuda"],
    companion: None,
    symbol: "cuDriverGetVersion",
    advice: "install NVIDIA's driver, for CUDA 12.3 or later (in a container, start it with the GPUs passed through)",
};

const NVRTC: Wanted = Wanted {
    stems: &["nvrtc"],
    companion: Some("nvrtc-builtins"),
    symbol: "nvrtcGetLTOIR",
    advice: "install NVRTC 12 or later, from the CUDA toolkit or by `pip install nvidia-cuda-nvrtc`, no newer than the \
             driver's CUDA, and let LD_LIBRARY_PATH (PATH on Windows) or CUDA_PATH lead to it",
};

const CUBLAS: Wanted = Wanted {
    stems: &["cublas"],
    companion: Some("cublasLt"),
    symbol: "cublasGemmBatchedEx_64",
    advice: "install cuBLAS 12 or later, from the CUDA toolkit or by `pip install nvidia-cublas`, no newer than the \
             driver's CUDA, and let LD_LIBRARY_PATH (PATH on Windows) or CUDA_PATH lead to it",
};

/// Makes sure that the driver's library can be called.
pub(crate) fn driver() -> Result<()> {
    static FOUND: OnceLock<Library> = OnceLock::new();
    DRIVER.find(&FOUND)
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

impl Wanted {
    /// Loads the library once for the life of the process. What is missing today is looked for again at the next call.
    fn find(&self, found: &OnceLock<Library>) -> Result<()> {
        if found.get().is_none() {
            let library =
                self.load(&folders()).map_err(|why| Error::Device(format!("{why}: {}", self.advice)))?;
            // Another thread may have been faster; then this handle is closed and the library stays loaded.
            let _ = found.set(library);
        }
        Ok(())
    }

    /// Opens the first file that the loader knows. Where it knows none, they are looked for in `folders`: a library once opened by
    /// its path is found by its own name from then on, by cudarc too.
    fn load(&self, folders: &[PathBuf]) -> std::result::Result<Library, String> {
        let names: Vec<String> = self.stems.iter().flat_map(|stem| names(stem)).collect();
        let known = || names.iter().find_map(open);
        let in_folder = |folder: &PathBuf| {
            self.open_companions(folder);
            let _by_path = names.iter().find_map(|name| open(folder.join(name)))?;
            known()
        };
        let Some(library) = known().or_else(|| folders.iter().find_map(in_folder)) else {
            return Err(format!("{} is missing", names[0]));
        };
        // SAFETY: the address is only looked up, not called.
        match unsafe { library.get::<*const ()>(self.symbol.as_bytes()) } {
            Ok(_) => Ok(library),
            Err(_) => Err(format!("{} is too old (it has no {})", names[0], self.symbol)),
        }
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
    let roots =
        ["CUDA_PATH", "CUDA_HOME", "CUDA_ROOT"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    roots
        .chain([PathBuf::from("/usr/local/cuda")])
        .flat_map(|root| ["lib64", "lib", "bin"].map(|folder| root.join(folder)))
        .filter(|folder| folder.is_dir())
        .collect()
}

/// The file names a library may have, a part of those cudarc tries and in its order: what is found here, cudarc finds.
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

/// Opens a library by its name or path.
fn open(path: impl AsRef<Path>) -> Option<Library> {
    // SAFETY: NVIDIA's libraries have initialisers that may run at any time on any thread.
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
    Err(Error::Device(format!(
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

    fn wanted(stem: &'static str, symbol: &'static str) -> Wanted {
        Wanted { stems: Box::leak(Box::new([stem])), companion: None, symbol, advice: "install it" }
    }

    #[test]
    fn a_missing_library_is_named_with_the_way_to_get_it() {
        let error = wanted("flashrnn-no-such", "f").find(&OnceLock::new()).unwrap_err().to_string();
        assert_eq!(error, format!("device: {DLL_PREFIX}flashrnn-no-such{DLL_SUFFIX} is missing: install it"));
    }

    /// With libgcc_s.so.1, which Rust's own library needs on this system.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn a_library_without_the_symbol_is_too_old() {
        let load = |symbol| wanted("gcc_s", symbol).load(&[]);
        assert_eq!(load("no_such").unwrap_err(), "libgcc_s.so is too old (it has no no_such)");
        assert!(load("_Unwind_Resume").is_ok());
    }

    #[test]
    fn old_drivers_are_refused() {
        assert!(check_driver_version(12030).is_ok());
        assert!(check_driver_version(13000).is_ok());
        let error = check_driver_version(12020).unwrap_err().to_string();
        assert!(error.contains("12.2") && error.contains("12.3") && error.contains("too old"), "{error}");
    }
}
