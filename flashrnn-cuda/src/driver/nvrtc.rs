//! NVRTC's functions, in the library that `library::nvrtc` has loaded, and its types.

use std::ffi::{c_char, c_int};

pub(crate) use cudarc::nvrtc::sys::{nvrtcProgram, nvrtcResult};

use crate::driver::library;
use crate::driver::loader::functions;

functions! {
    library::nvrtc;
    fn nvrtcVersion(major: *mut c_int, minor: *mut c_int) -> nvrtcResult;
    fn nvrtcGetNumSupportedArchs(count: *mut c_int) -> nvrtcResult;
    fn nvrtcGetSupportedArchs(architectures: *mut c_int) -> nvrtcResult;
    fn nvrtcGetErrorString(result: nvrtcResult) -> *const c_char;
    fn nvrtcCreateProgram(
        program: *mut nvrtcProgram,
        source: *const c_char,
        name: *const c_char,
        header_count: c_int,
        headers: *const *const c_char,
        header_names: *const *const c_char,
    ) -> nvrtcResult;
    fn nvrtcDestroyProgram(program: *mut nvrtcProgram) -> nvrtcResult;
    fn nvrtcCompileProgram(
        program: nvrtcProgram,
        option_count: c_int,
        options: *const *const c_char,
    ) -> nvrtcResult;
    fn nvrtcGetProgramLogSize(program: nvrtcProgram, bytes: *mut usize) -> nvrtcResult;
    fn nvrtcGetProgramLog(program: nvrtcProgram, log: *mut c_char) -> nvrtcResult;
    fn nvrtcGetCUBINSize(program: nvrtcProgram, bytes: *mut usize) -> nvrtcResult;
    fn nvrtcGetCUBIN(program: nvrtcProgram, cubin: *mut c_char) -> nvrtcResult;
    fn nvrtcGetPTXSize(program: nvrtcProgram, bytes: *mut usize) -> nvrtcResult;
    fn nvrtcGetPTX(program: nvrtcProgram, ptx: *mut c_char) -> nvrtcResult;
}
