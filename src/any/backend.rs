//! The backends and their names.

use std::fmt;
use std::str::FromStr;

use flashrnn_core::{Backend, Dtype, Error, Result};

/// The name of a backend, or `auto`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BackendName {
    /// A GPU that supports the requested element type, or the CPU if there is none.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// Any GPU, through WGSL.
    Wgpu,
}

impl BackendName {
    /// Every name.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Cpu, Self::Cuda, Self::Wgpu];

    /// Returns the name in lower case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Wgpu => "wgpu",
        }
    }
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for BackendName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let named = Self::ALL.into_iter().find(|known| known.name() == name);
        named.ok_or_else(|| Error::InvalidProblem {
            option: "backend",
            got: name.into(),
            want: "auto, cpu, cuda or wgpu",
        })
    }
}

/// One of the backends this program was built with.
///
/// ```
/// use flashrnn::prelude::*;
///
/// # fn main() -> flashrnn::Result<()> {
/// let backend = AnyBackend::new("cpu".parse::<BackendName>()?)?;
/// let plan = backend.plan(&Lstm, &Problem::new(2, 100, 4, 32))?;
/// let (r, b) = (backend.alloc::<f32>(4 * 4 * 32 * 32)?, backend.alloc::<f32>(4 * 4 * 32)?);
/// let weights = plan.pack(backend.view(&r), backend.view(&b))?;
/// let wx = backend.upload(&vec![0.5; 2 * 100 * 4 * 4 * 32])?;
/// let mut h = backend.alloc(2 * 100 * 4 * 32)?;
/// let call = Forward::new(&weights, backend.view(&wx));
/// plan.forward(Forward { h: Some(backend.view_mut(&mut h)), ..call })?;
/// let h: Vec<f32> = backend.download(backend.view(&h))?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum AnyBackend {
    /// The CPU.
    #[cfg(feature = "cpu")]
    Cpu(crate::Cpu),
    /// An NVIDIA GPU.
    #[cfg(feature = "cuda")]
    Cuda(crate::Cuda),
    /// Any GPU, or a software driver that runs on the CPU.
    #[cfg(feature = "wgpu")]
    Wgpu(crate::Wgpu),
}

/// Evaluates an expression with the contents of the current variant. The expression is compiled
/// once per backend.
macro_rules! each {
    ($value:expr, $enum:ident($inner:pat) => $body:expr) => {
        match $value {
            #[cfg(feature = "cpu")]
            $enum::Cpu($inner) => $body,
            #[cfg(feature = "cuda")]
            $enum::Cuda($inner) => $body,
            #[cfg(feature = "wgpu")]
            $enum::Wgpu($inner) => $body,
        }
    };
}

/// Does the same as [`each`], and wraps the result in the same variant of another type.
macro_rules! wrap {
    ($value:expr, $enum:ident($inner:pat) => $wrapped:ident($body:expr)) => {
        match $value {
            #[cfg(feature = "cpu")]
            $enum::Cpu($inner) => $wrapped::Cpu($body),
            #[cfg(feature = "cuda")]
            $enum::Cuda($inner) => $wrapped::Cuda($body),
            #[cfg(feature = "wgpu")]
            $enum::Wgpu($inner) => $wrapped::Wgpu($body),
        }
    };
}

pub(super) use {each, wrap};

impl AnyBackend {
    /// Makes the backend `name`. [`BackendName::Auto`] means [`AnyBackend::auto`] for f32.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if this program was built without the backend, [`Error::Device`] if
    /// its device, driver or libraries are missing.
    pub fn new(name: BackendName) -> Result<Self> {
        match name {
            BackendName::Auto => Self::auto(Dtype::F32),
            #[cfg(feature = "cpu")]
            BackendName::Cpu => Ok(Self::Cpu(crate::Cpu::new())),
            #[cfg(feature = "cuda")]
            BackendName::Cuda => {
                let cuda = crate::Cuda::new()?;
                for library in crate::cuda::libraries() {
                    library.found?;
                }
                Ok(Self::Cuda(cuda))
            }
            #[cfg(feature = "wgpu")]
            BackendName::Wgpu => Ok(Self::Wgpu(crate::Wgpu::new()?)),
            #[allow(unreachable_patterns, reason = "with every feature, no name is left")]
            other => Err(not_compiled_in(other)),
        }
    }

    /// Makes the backend of a GPU that supports `dtype`, preferring CUDA to wgpu, or the CPU
    /// backend if there is none. A software driver that runs on the CPU does not count as a GPU.
    ///
    /// # Errors
    /// If there is no such GPU and this program was built without the feature `cpu`: the last error
    /// of a GPU backend, or [`Error::Unsupported`] if none of them failed.
    pub fn auto(dtype: Dtype) -> Result<Self> {
        let mut last = not_compiled_in(BackendName::Cpu);
        for name in [BackendName::Cuda, BackendName::Wgpu] {
            match Self::new(name) {
                Ok(backend) if backend.is_gpu() && backend.info().dtypes.contains(&dtype) => {
                    return Ok(backend);
                }
                Ok(_) => {}
                Err(error) => last = error,
            }
        }
        if cfg!(feature = "cpu") { Self::new(BackendName::Cpu) } else { Err(last) }
    }

    /// Returns whether the backend runs on a GPU.
    #[must_use]
    pub fn is_gpu(&self) -> bool {
        match self {
            #[cfg(feature = "cpu")]
            Self::Cpu(_) => false,
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => true,
            #[cfg(feature = "wgpu")]
            Self::Wgpu(wgpu) => !wgpu.is_cpu(),
        }
    }
}

fn not_compiled_in(name: BackendName) -> Error {
    Error::Unsupported {
        backend: name.name(),
        what: "this program".into(),
        why: format!("it was built without the feature `{name}` of the crate flashrnn"),
    }
}
