//! Selects a backend by its name on the command line.

use anyhow::{Result, bail};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use flashrnn::{AnyBackend, Backend, BackendName};
use flashrnn_gpu::Family;

use crate::choice::DtypeName;

/// Reads a [`BackendName`] from the command line.
pub fn parser() -> impl TypedValueParser<Value = BackendName> {
    PossibleValuesParser::new(BackendName::ALL.map(BackendName::name))
        .try_map(|name| name.parse::<BackendName>())
}

/// Reads a [`Family`] of kernels from the command line.
pub fn kernel_parser() -> impl TypedValueParser<Value = Family> {
    PossibleValuesParser::new([
        PossibleValue::new(Family::Auto.name()).help("Fused kernels where possible"),
        PossibleValue::new(Family::Fused.name()).help("Many time steps per launch"),
        PossibleValue::new(Family::Alternating.name()).help("One launch per time step"),
    ])
    .try_map(|name| name.parse::<Family>())
}

/// Makes the backend `name`, restricted to the kernels of `kernel`. `dtype` is the element type to
/// compute in, if there is only one.
///
/// # Errors
/// If the backend is not compiled in, its device or libraries are missing, or it has no choice of
/// kernels.
pub fn find(name: BackendName, dtype: Option<DtypeName>, kernel: Family) -> Result<AnyBackend> {
    if !compiled_in(name) {
        bail!(
            "this flashrnn was built without the backend {name}; rebuild it with \
             `--features {name}` or use --backend cpu"
        );
    }
    let backend = match (name, dtype) {
        (BackendName::Auto, Some(dtype)) => AnyBackend::auto(dtype.dtype()),
        (name, _) => AnyBackend::new(name),
    }?;
    with_kernel(backend, kernel)
}

/// Returns whether the command was built with the backend `name`.
pub fn compiled_in(name: BackendName) -> bool {
    match name {
        BackendName::Auto | BackendName::Cpu => true,
        BackendName::Cuda => cfg!(feature = "cuda"),
        BackendName::Wgpu => cfg!(feature = "wgpu"),
    }
}

/// Returns `backend`, restricted to the kernels of `kernel`.
///
/// # Errors
/// If the backend has no choice of kernels.
pub fn with_kernel(backend: AnyBackend, kernel: Family) -> Result<AnyBackend> {
    match backend {
        backend if kernel == Family::Auto => Ok(backend),
        #[cfg(feature = "cuda")]
        AnyBackend::Cuda(cuda) => Ok(AnyBackend::Cuda(cuda.with_family(kernel))),
        #[cfg(feature = "wgpu")]
        AnyBackend::Wgpu(wgpu) => Ok(AnyBackend::Wgpu(wgpu.with_family(kernel))),
        backend => {
            bail!("--kernel {kernel} needs a GPU, but the backend is {}", backend.info().name)
        }
    }
}

/// Returns the number of threads of the CPU backend.
pub fn threads(backend: &AnyBackend) -> Option<usize> {
    match backend {
        AnyBackend::Cpu(cpu) => Some(cpu.threads()),
        _ => None,
    }
}

/// Returns whether the backend supports this element type.
pub fn supports(backend: &AnyBackend, dtype: DtypeName) -> bool {
    backend.info().dtypes.contains(&dtype.dtype())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_finds_a_backend_that_supports_the_element_type() -> Result<()> {
        for dtype in DtypeName::ALL {
            let found = find(BackendName::Auto, Some(dtype), Family::Auto)?;
            assert!(supports(&found, dtype), "{dtype}");
            assert!(found.is_gpu() || found.info().name == "cpu", "{dtype}: {:?}", found.info());
        }
        Ok(())
    }

    #[test]
    fn the_cpu_has_no_kernels_to_choose_from() {
        for kernel in [Family::Fused, Family::Alternating] {
            let message = find(BackendName::Cpu, None, kernel)
                .err()
                .map(|e| e.to_string())
                .unwrap_or_default();
            assert!(message.contains("needs a GPU"), "{message}");
        }
    }
}
