//! Reports on the libraries that plans need.

use flashrnn_core::Result;

use crate::driver::library;
use crate::kernels::compile::Nvrtc;

/// Reports on a library that plans need in addition to the driver. (Without the driver there is no
/// [`Cuda`](crate::Cuda).)
#[derive(Clone, Debug)]
pub struct Library {
    /// The name of the library.
    pub name: &'static str,
    /// The version, or for cuBLAS just `found`. The error says why the library can't be used and
    /// what to do about it.
    pub found: Result<String>,
}

/// Looks for NVRTC and cuBLAS. If one is missing, making or running a plan fails with the error
/// returned here.
#[must_use]
pub fn libraries() -> [Library; 2] {
    let nvrtc = Nvrtc::get().map(|nvrtc| format!("{}.{}", nvrtc.major, nvrtc.minor));
    let cublas = library::cublas().map(|_| "found".into());
    [Library { name: "NVRTC", found: nvrtc }, Library { name: "cuBLAS", found: cublas }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_there_or_says_what_to_do() {
        for Library { name, found } in libraries() {
            match found {
                Ok(version) => assert!(!version.is_empty(), "{name}"),
                Err(error) => assert!(error.to_string().contains("install"), "{name}: {error}"),
            }
        }
    }
}
