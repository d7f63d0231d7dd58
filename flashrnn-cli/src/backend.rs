//! Which backend runs: from the name on the command line to one that this machine has.

use anyhow::{Result, bail};
#[cfg(feature = "wgpu")]
use flashrnn::Wgpu;
use flashrnn::{Backend, Cpu, Info};
#[cfg(feature = "cuda")]
use flashrnn::{Cuda, cuda::Family};

use crate::choice::{BackendName, DtypeName, KernelName};

/// A backend that is there.
#[derive(Clone)]
pub enum Found {
    /// The processor.
    Cpu(Cpu),
    /// An NVIDIA GPU.
    #[cfg(feature = "cuda")]
    Cuda(Cuda),
    /// Any GPU, or a driver for GPUs that runs on the processor.
    #[cfg(feature = "wgpu")]
    Wgpu(Wgpu),
}

/// Evaluates an expression with the backend that was [`Found`]: `with_backend!(found, |backend| run(backend))`.
/// The expression is compiled once for each backend.
macro_rules! with_backend {
    ($found:expr, |$backend:ident| $body:expr) => {
        match $found {
            $crate::backend::Found::Cpu($backend) => $body,
            #[cfg(feature = "cuda")]
            $crate::backend::Found::Cuda($backend) => $body,
            #[cfg(feature = "wgpu")]
            $crate::backend::Found::Wgpu($backend) => $body,
        }
    };
}

pub(crate) use with_backend;

impl Found {
    /// Finds what `name` asks for; `dtype` is the element type to compute in, where it is one.
    ///
    /// # Errors
    /// Where the backend asked for is not compiled in, or its device or libraries are missing.
    pub fn new(name: BackendName, dtype: Option<DtypeName>) -> Result<Self> {
        match name {
            BackendName::Cpu => Ok(Self::Cpu(Cpu::new())),
            BackendName::Cuda => cuda(),
            BackendName::Wgpu => wgpu(),
            BackendName::Auto => {
                // A GPU that can't compute in this type is not what somebody wants who leaves the choice to us, and neither is
                // a driver that runs on the processor.
                let wanted = |found: &Self| found.is_gpu() && dtype.is_none_or(|dtype| found.takes(dtype));
                let mut gpus = [cuda, wgpu].into_iter().filter_map(|find| find().ok());
                Ok(gpus.find(wanted).unwrap_or_else(|| Self::Cpu(Cpu::new())))
            }
        }
    }

    /// The same backend with these kernels.
    ///
    /// # Errors
    /// Where the backend has no such choice.
    pub fn with_kernel(self, kernel: KernelName) -> Result<Self> {
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => Ok(Self::Cuda(cuda.with_family(match kernel {
                KernelName::Auto => Family::Auto,
                KernelName::Fused => Family::Fused,
                KernelName::Alternating => Family::Alternating,
            }))),
            found if kernel == KernelName::Auto => Ok(found),
            found => bail!("--kernel {kernel} is for the backend cuda: this is {}", found.info().name),
        }
    }

    /// The backend's name, device and element types.
    pub fn info(&self) -> Info {
        with_backend!(self, |backend| backend.info())
    }

    /// How many threads compute, where the processor does.
    pub fn threads(&self) -> Option<usize> {
        match self {
            Self::Cpu(cpu) => Some(cpu.threads()),
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => None,
            #[cfg(feature = "wgpu")]
            Self::Wgpu(_) => None,
        }
    }

    /// Whether a GPU computes.
    pub fn is_gpu(&self) -> bool {
        match self {
            Self::Cpu(_) => false,
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => true,
            #[cfg(feature = "wgpu")]
            Self::Wgpu(wgpu) => !wgpu.is_cpu(),
        }
    }

    /// Whether it computes in this element type.
    pub fn takes(&self, dtype: DtypeName) -> bool {
        self.info().dtypes.contains(&dtype.dtype())
    }
}

#[cfg(feature = "cuda")]
fn cuda() -> Result<Found> {
    let cuda = Cuda::new()?;
    for library in flashrnn::cuda::libraries() {
        library.found?;
    }
    Ok(Found::Cuda(cuda))
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Result<Found> {
    not_compiled(BackendName::Cuda)
}

#[cfg(feature = "wgpu")]
fn wgpu() -> Result<Found> {
    Ok(Found::Wgpu(Wgpu::new()?))
}

#[cfg(not(feature = "wgpu"))]
fn wgpu() -> Result<Found> {
    not_compiled(BackendName::Wgpu)
}

#[cfg(not(all(feature = "cuda", feature = "wgpu")))]
fn not_compiled(name: BackendName) -> Result<Found> {
    bail!(
        "this flashrnn was built without the backend {name}: build it again with `--features {name}`, or use --backend cpu"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_finds_a_backend_that_takes_the_element_type() -> Result<()> {
        for dtype in DtypeName::ALL {
            let found = Found::new(BackendName::Auto, Some(dtype))?;
            assert!(found.takes(dtype), "{dtype}");
            assert!(found.is_gpu() || found.info().name == "cpu", "{dtype}: {:?}", found.info());
        }
        assert_eq!(Found::new(BackendName::Cpu, None)?.info().name, "cpu");
        Ok(())
    }
}
