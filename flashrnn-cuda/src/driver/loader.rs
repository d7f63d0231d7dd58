//! Loads shared libraries and checks that they have the functions this crate needs.

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::driver::sys::CUDA_VERSION;
use flashrnn_core::{Error, Result};
use libloading::Library;

/// Describes a shared library: its name, the functions it must have, and how to install it.
pub(crate) struct Wanted {
    /// The name without the platform's prefix and suffix; several if the name depends on the
    /// platform.
    pub stems: &'static [&'static str],
    /// The name prefix of libraries that this library loads itself, which the system's loader may
    /// not find.
    pub companion: Option<&'static str>,
    /// Every function that this crate calls, directly or through cudarc.
    pub functions: &'static [&'static str],
    /// Advice that completes the message "... is missing: ".
    pub advice: &'static str,
}

impl Wanted {
    /// Loads the library, once for the life of the process. If it is missing, the next call tries
    /// again.
    ///
    /// # Errors
    /// [`Error::Device`] if the library is missing or lacks a function.
    pub(crate) fn find(&self, found: &OnceLock<Library>) -> Result<()> {
        if found.get().is_none() {
            let library = self.load().map_err(|why| self.missing(&why))?;
            self.check(&library).map_err(|why| self.missing(&why))?;
            // If another thread was faster, this handle is closed and the library stays loaded.
            let _ = found.set(library);
        }
        Ok(())
    }

    /// Returns the library's usual file name on this platform.
    pub(crate) fn name(&self) -> String {
        format!("{DLL_PREFIX}{}{DLL_SUFFIX}", self.stems[0])
    }

    /// Returns the error for an unusable library. Its message starts with `why`.
    pub(crate) fn missing(&self, why: &str) -> Error {
        Error::device(format!("{why}: {}", self.advice))
    }

    /// Returns the message for a missing function.
    pub(crate) fn lacks(&self, function: &str) -> String {
        format!("{} has no {function}: it is too old or not NVIDIA's", self.name())
    }

    /// Opens the first file that the system's loader finds, or else the first in the library
    /// folders of CUDA toolkits. Once a library has been opened by path, the loader finds it by
    /// name, so cudarc finds it too.
    pub(crate) fn load(&self) -> std::result::Result<Library, String> {
        let names: Vec<String> = self.stems.iter().flat_map(|stem| names(stem)).collect();
        let by_name = || names.iter().find_map(open);
        let in_folder = |folder: &PathBuf| {
            self.open_companions(folder);
            let _by_path = names.iter().find_map(|name| open(folder.join(name)))?;
            by_name()
        };
        let found = by_name().or_else(|| toolkit_folders().iter().find_map(in_folder));
        found.ok_or_else(|| format!("{} is missing", self.name()))
    }

    /// Checks that the library has every function in the list.
    pub(crate) fn check(&self, library: &Library) -> std::result::Result<(), String> {
        // SAFETY: the addresses are only looked up, not called.
        let absent = |name: &&&str| unsafe { library.get::<*const ()>(name.as_bytes()) }.is_err();
        self.functions.iter().find(absent).map_or(Ok(()), |name| Err(self.lacks(name)))
    }

    /// Opens the companion libraries in `folder`, for the life of the process.
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

/// Returns the library folders of CUDA toolkits, which the system's loader may not search.
fn toolkit_folders() -> Vec<PathBuf> {
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

/// Returns the file names that a library may have. They are a subset of the names that cudarc
/// tries, in the same order, so cudarc finds the same file.
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

/// Opens a library by name or path. On Unix, all symbols that it needs from other libraries are
/// resolved now, because a missing one would end the process at its first call.
fn open(path: impl AsRef<Path>) -> Option<Library> {
    #[cfg(unix)]
    {
        use libloading::os::unix::{self, RTLD_LOCAL, RTLD_NOW};
        // SAFETY: the initialisers of NVIDIA's libraries may run at any time, on any thread.
        unsafe { unix::Library::open(Some(path.as_ref()), RTLD_NOW | RTLD_LOCAL) }
            .ok()
            .map(Library::from)
    }
    #[cfg(not(unix))]
    // SAFETY: as above.
    unsafe { Library::new(path.as_ref()) }.ok()
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

    /// Tests with libgcc_s.so.1, which Rust's standard library needs on this platform.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn a_library_that_lacks_a_function_is_named() {
        let find = |functions| wanted("gcc_s", functions).find(&OnceLock::new());
        let error = find(&["_Unwind_Resume", "no_such"]).unwrap_err().to_string();
        assert!(error.starts_with("device: libgcc_s.so has no no_such: it is too old"), "{error}");
        assert!(find(&["_Unwind_Resume"]).is_ok());
    }
}
