//! Loads shared libraries and checks that they have the functions this crate needs.

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
#[cfg(target_os = "linux")]
use std::ffi::c_int;
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

/// Declares functions of a library. Each calls the function of its name in the library that
/// `$library` returns, which has checked that all functions exist.
macro_rules! functions {
    (
        $library:path;
        $(fn $name:ident($($argument:ident: $type:ty),* $(,)?) -> $result:ty;)*
    ) => {
        $(
            /// Calls the library's function of this name.
            ///
            /// # Safety
            /// NVIDIA's documentation of the function says what it requires.
            ///
            /// # Panics
            /// If the library can't be loaded. Callers have loaded it before.
            #[allow(non_snake_case, reason = "NVIDIA's names")]
            #[allow(clippy::too_many_arguments, reason = "NVIDIA's arguments")]
            pub(crate) unsafe fn $name($($argument: $type),*) -> $result {
                type Function = unsafe extern "C" fn($($type),*) -> $result;
                static FUNCTION: std::sync::OnceLock<Function> = std::sync::OnceLock::new();
                let function = FUNCTION.get_or_init(|| {
                    let library = $library().expect("the caller has loaded the library");
                    // SAFETY: NVIDIA's function of this name has this type.
                    *unsafe { library.get::<Function>(stringify!($name).as_bytes()) }
                        .expect("the library's functions have been checked")
                });
                // SAFETY: guaranteed by the caller.
                unsafe { function($($argument),*) }
            }
        )*
    };
}
pub(crate) use functions;

impl Wanted {
    /// Loads the library, once for the life of the process. If it is missing, the next call tries
    /// again. A library that the process already uses, such as PyTorch's, comes first.
    ///
    /// # Errors
    /// [`Error::Device`] if the library is missing or lacks a function.
    pub(crate) fn find<'a>(&self, found: &'a OnceLock<Library>) -> Result<&'a Library> {
        if let Some(library) = found.get() {
            return Ok(library);
        }
        let usable = |library: &Library| self.check(library).is_ok();
        let library = match self.names().iter().find_map(|name| loaded(name).filter(usable)) {
            Some(library) => library,
            None => self.open().map_err(|why| self.missing(&why))?,
        };
        self.check(&library).map_err(|why| self.missing(&why))?;
        // If another thread was faster, this handle is closed and the library stays loaded.
        Ok(found.get_or_init(|| library))
    }

    /// Returns the file names that the library may have.
    fn names(&self) -> Vec<String> {
        self.stems.iter().flat_map(|stem| names(stem)).collect()
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
    /// name, so cudarc finds the driver too.
    pub(crate) fn open(&self) -> std::result::Result<Library, String> {
        let names = self.names();
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
/// tries, in the same order, so cudarc finds the same driver.
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

/// Returns a library of this name if it is in the process already.
fn loaded(name: impl AsRef<Path>) -> Option<Library> {
    #[cfg(target_os = "linux")]
    {
        use libloading::os::unix::{self, RTLD_LOCAL, RTLD_NOW};
        const RTLD_NOLOAD: c_int = 4;
        let flags = RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD;
        // SAFETY: nothing is loaded, so no initialiser runs.
        unsafe { unix::Library::open(Some(name.as_ref()), flags) }.ok().map(Library::from)
    }
    #[cfg(windows)]
    return libloading::os::windows::Library::open_already_loaded(name.as_ref())
        .ok()
        .map(Library::from);
    #[cfg(not(any(target_os = "linux", windows)))]
    {
        let _ = name;
        None
    }
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
        let find = |functions| wanted("gcc_s", functions).find(&OnceLock::new()).map(drop);
        let error = find(&["_Unwind_Resume", "no_such"]).unwrap_err().to_string();
        assert!(error.starts_with("device: libgcc_s.so has no no_such: it is too old"), "{error}");
        assert!(find(&["_Unwind_Resume"]).is_ok());
    }

    /// PyTorch's libraries have versions in their names, which a toolkit's need not have.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_library_that_the_process_uses_comes_before_what_the_loader_finds() {
        use std::process::Command;

        /// Set in the process that this test starts, to the folder that its loader does not search.
        const OTHER: &str = "FLASHRNN_TEST_LOADER_OTHER";
        if let Some(other) = std::env::var_os(OTHER) {
            let which = || {
                let found = OnceLock::new();
                let library = wanted("flashrnnprobe", &["which"]).find(&found).unwrap();
                // SAFETY: the test's libraries define this function.
                unsafe { library.get::<extern "C" fn() -> c_int>(b"which") }.unwrap()()
            };
            assert_eq!(which(), 1);
            let other = open(Path::new(&other).join("libflashrnnprobe.so.13")).unwrap();
            assert_eq!(which(), 2);
            drop(other);
            return;
        }
        let (searched, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let files = [
            (searched.path().join("libflashrnnprobe.so"), 1),
            (other.path().join("libflashrnnprobe.so.13"), 2),
        ];
        for (file, which) in &files {
            let source = other.path().join("source.c");
            std::fs::write(&source, format!("int which(void) {{ return {which}; }}")).unwrap();
            let name = file.file_name().unwrap().to_str().unwrap();
            let made = Command::new("cc")
                .args(["-shared", "-fPIC", &format!("-Wl,-soname,{name}"), "-o"])
                .args([file, &source])
                .status();
            if !made.is_ok_and(|status| status.success()) {
                println!("skipped: there is no C compiler");
                return;
            }
        }
        let test = std::thread::current().name().unwrap().to_owned();
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &test, "--nocapture"])
            .env(OTHER, other.path())
            .env("LD_LIBRARY_PATH", searched.path())
            .status()
            .unwrap();
        assert!(status.success(), "{status}");
    }
}
