//! Compiles CUDA C++ to machine code with NVRTC, which needs neither a GPU nor the driver.

use std::ffi::{CStr, CString, c_char, c_int};
use std::fmt;
use std::ptr;
use std::sync::OnceLock;

use flashrnn_core::{Error, Result};

use crate::driver::{library, nvrtc as sys};

/// Holds a source and, except for the architecture, everything else that its machine code depends
/// on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Program {
    /// Name of the source file, for compiler messages.
    pub name: String,
    /// The CUDA C++ source.
    pub source: String,
    /// Included files: the name in `#include "name"`, and the text.
    pub headers: Vec<(String, String)>,
    /// Options for NVRTC, in addition to those that [`compile`] always passes.
    pub options: Vec<String>,
}

/// Identifies a compute capability, such as 9.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Arch {
    /// The 9 of 9.0.
    pub major: u32,
    /// The 0 of 9.0.
    pub minor: u32,
}

impl Arch {
    /// The minimum compute capability of the kernels.
    pub const OLDEST: Self = Self { major: 8, minor: 0 };

    fn number(self) -> u32 {
        10 * self.major + self.minor
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "compute capability {}.{}", self.major, self.minor)
    }
}

/// The options that every program is compiled with, in addition to the architecture.
pub(crate) const OPTIONS: [&str; 2] = ["--std=c++17", "--ptxas-options=-v"];

/// Holds a compiled [`Program`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// Machine code for one architecture.
    pub cubin: Vec<u8>,
    /// The compiler's log, which has the registers, spills and stack frame of each kernel.
    pub log: String,
}

/// Describes the loaded NVRTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nvrtc {
    /// The 13 of 13.0.
    pub major: u32,
    /// The 0 of 13.0.
    pub minor: u32,
    /// Release and build, as printed by the compiler.
    pub build: String,
    /// The supported architectures, as 10 times the major plus the minor number.
    architectures: Vec<u32>,
}

impl Nvrtc {
    pub(crate) fn new(major: u32, minor: u32, build: &str, architectures: &[u32]) -> Self {
        Self { major, minor, build: build.into(), architectures: architectures.into() }
    }

    /// Loads NVRTC and returns its version.
    ///
    /// # Errors
    /// [`Error::Device`] if NVRTC is missing, lacks a function, or fails.
    pub fn get() -> Result<&'static Self> {
        static FOUND: OnceLock<Nvrtc> = OnceLock::new();
        if let Some(found) = FOUND.get() {
            return Ok(found);
        }
        let found = Self::ask()?;
        Ok(FOUND.get_or_init(|| found))
    }

    fn ask() -> Result<Self> {
        library::nvrtc()?;
        let (mut major, mut minor, mut count): (c_int, c_int, c_int) = (0, 0, 0);
        // SAFETY: both integers outlive the call.
        check(unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) }, "nvrtcVersion")?;
        // SAFETY: as above.
        let result = unsafe { sys::nvrtcGetNumSupportedArchs(&raw mut count) };
        check(result, "nvrtcGetNumSupportedArchs")?;
        let mut architectures: Vec<c_int> = vec![0; count.max(0) as usize];
        // SAFETY: the array has the length that NVRTC has just returned.
        let result = unsafe { sys::nvrtcGetSupportedArchs(architectures.as_mut_ptr()) };
        check(result, "nvrtcGetSupportedArchs")?;
        let architectures: Vec<u32> = architectures.into_iter().map(c_int::unsigned_abs).collect();
        let oldest = architectures.iter().min().copied().unwrap_or(Arch::OLDEST.number());
        Ok(Self::new(major.unsigned_abs(), minor.unsigned_abs(), &build(oldest)?, &architectures))
    }

    /// Returns the architecture to compile for so that the result runs on `arch`. It is `arch` with
    /// its specific instructions (`sm_90a`) or, if this NVRTC doesn't support that, the newest
    /// compatible architecture before it.
    fn target(&self, arch: Arch) -> Result<String> {
        let known = |number: &u32| *number <= arch.number() && *number / 10 == arch.major;
        match self.architectures.iter().copied().filter(known).max() {
            Some(number) if number == arch.number() && number >= 90 => Ok(format!("sm_{number}a")),
            Some(number) => Ok(format!("sm_{number}")),
            None => Err(Error::device(format!(
                "NVRTC {}.{} can't compile for {arch}: install another version of NVRTC (a newer \
                 one for a newer GPU)",
                self.major, self.minor
            ))),
        }
    }
}

/// Compiles `program` for `arch`.
///
/// # Errors
/// [`Error::Compile`] with the compiler's log if the program is invalid, [`Error::Device`] if NVRTC
/// is missing or doesn't support `arch`.
pub fn compile(program: &Program, arch: Arch) -> Result<Compiled> {
    let target = Nvrtc::get()?.target(arch)?;
    let target = format!("--gpu-architecture={target}");
    let own = program.options.iter().map(String::as_str);
    let options: Vec<&str> = std::iter::once(target.as_str()).chain(OPTIONS).chain(own).collect();
    let handle = Handle::new(program)?;
    let log = handle.compile(&options)?;
    Ok(Compiled { cubin: handle.output(sys::nvrtcGetCUBINSize, sys::nvrtcGetCUBIN)?, log })
}

/// Returns the compiler's release and build. NVRTC reports them only in the header of its output.
fn build(arch: u32) -> Result<String> {
    let program = Program {
        name: "build.cu".into(),
        source: String::new(),
        headers: Vec::new(),
        options: Vec::new(),
    };
    let handle = Handle::new(&program)?;
    handle.compile(&[&format!("--gpu-architecture=compute_{arch}")])?;
    let ptx = handle.output(sys::nvrtcGetPTXSize, sys::nvrtcGetPTX)?;
    let head: Vec<_> =
        ptx.split(|&byte| byte == b'\n').filter(|line| line.starts_with(b"//")).collect();
    Ok(head
        .iter()
        .map(|line| String::from_utf8_lossy(&line[2..]).trim().to_string())
        .collect::<Vec<_>>()
        .join("\n"))
}

/// An NVRTC program, with the texts that it was created from. NVRTC may refer to them.
struct Handle {
    program: sys::nvrtcProgram,
    name: String,
    _texts: Vec<CString>,
}

impl Handle {
    fn new(program: &Program) -> Result<Self> {
        let text = |s: &str| {
            CString::new(s).map_err(|_| Error::Compile {
                kernel: program.name.clone(),
                log: "a source, header or name contains a zero byte".into(),
            })
        };
        let mut texts = vec![text(&program.source)?, text(&program.name)?];
        for (name, header) in &program.headers {
            texts.push(text(name)?);
            texts.push(text(header)?);
        }
        let pointers = |skip: usize| {
            texts.iter().skip(skip).step_by(2).map(|s| s.as_ptr()).collect::<Vec<_>>()
        };
        let (names, headers) = (pointers(2), pointers(3));
        let mut handle = ptr::null_mut();
        // SAFETY: all strings are null-terminated and live as long as the program, and both arrays
        // have the given length.
        let result = unsafe {
            sys::nvrtcCreateProgram(
                &raw mut handle,
                texts[0].as_ptr(),
                texts[1].as_ptr(),
                headers.len() as c_int,
                headers.as_ptr(),
                names.as_ptr(),
            )
        };
        check(result, "nvrtcCreateProgram")?;
        Ok(Self { program: handle, name: program.name.clone(), _texts: texts })
    }

    /// Compiles the program and returns the log.
    fn compile(&self, options: &[&str]) -> Result<String> {
        let options: Vec<CString> =
            options.iter().filter_map(|option| CString::new(*option).ok()).collect();
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the program is alive, and `pointers` holds null-terminated strings that are
        // alive.
        let result = unsafe {
            sys::nvrtcCompileProgram(self.program, pointers.len() as c_int, pointers.as_ptr())
        };
        let log = self.output(sys::nvrtcGetProgramLogSize, sys::nvrtcGetProgramLog)?;
        let log = String::from_utf8_lossy(&log).trim_matches(['\0', '\n', ' ']).to_string();
        if result == sys::nvrtcResult::NVRTC_SUCCESS {
            return Ok(log);
        }
        Err(Error::Compile {
            kernel: self.name.clone(),
            log: format!("{log}\n{}", describe(result)),
        })
    }

    /// Returns an output of NVRTC: `size` returns its size and `get` writes its bytes.
    fn output(
        &self,
        size: unsafe fn(sys::nvrtcProgram, *mut usize) -> sys::nvrtcResult,
        get: unsafe fn(sys::nvrtcProgram, *mut c_char) -> sys::nvrtcResult,
    ) -> Result<Vec<u8>> {
        let mut bytes = 0;
        // SAFETY: the program is alive, and `bytes` outlives the call.
        check(unsafe { size(self.program, &raw mut bytes) }, "NVRTC's output size")?;
        let mut output = vec![0_u8; bytes];
        // SAFETY: the buffer has the size that NVRTC has just returned.
        check(unsafe { get(self.program, output.as_mut_ptr().cast()) }, "NVRTC's output")?;
        Ok(output)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: `new` created the program, and only this destroys it. A failure is ignored
        // because there is nothing to do about it.
        unsafe { sys::nvrtcDestroyProgram(&raw mut self.program) };
    }
}

fn check(result: sys::nvrtcResult, what: &str) -> Result<()> {
    match result {
        sys::nvrtcResult::NVRTC_SUCCESS => Ok(()),
        failed => Err(Error::device(format!("{what}: {}", describe(failed)))),
    }
}

fn describe(result: sys::nvrtcResult) -> String {
    // SAFETY: NVRTC returns a static string for every code.
    let text = unsafe { sys::nvrtcGetErrorString(result) };
    if text.is_null() {
        return format!("{result:?}");
    }
    // SAFETY: as above; the string is null-terminated.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_architectures_that_nvrtc_supports() {
        let nvrtc = Nvrtc::new(12, 4, "", &[70, 75, 80, 86, 89, 90]);
        let target = |major, minor| nvrtc.target(Arch { major, minor });
        assert_eq!(target(8, 0).unwrap(), "sm_80");
        assert_eq!(target(8, 7).unwrap(), "sm_86");
        assert_eq!(target(9, 0).unwrap(), "sm_90a");
        let error = target(10, 0).unwrap_err().to_string();
        assert!(error.contains("12.4") && error.contains("10.0"), "{error}");
    }
}
