//! A backend chosen at run time, as a value of one type: [`AnyBackend`].
//!
//! Each of its types (buffers, views, packed weights, plans) is one of the compiled backends'.
//! Memory and weights of another backend than the plan's are refused with [`Error::Argument`]. A
//! call costs a few comparisons more than the backend's own.

mod memory;
mod plan;

use std::fmt;
use std::str::FromStr;

use flashrnn_core::{Backend, Cell, Dtype, Element, Error, Info, Problem, Result};

use self::memory::own;
pub use self::memory::{AnyBuffer, AnyView, AnyViewMut};
pub use self::plan::{AnyOrder, AnyPacked, AnyPlan};
use bytemuck::Pod;

/// The name of a backend, or `auto`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BackendName {
    /// A GPU where one is found that computes in the element type asked for, else the CPU.
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

/// One of the backends that this program was built with.
///
/// ```
/// use flashrnn::prelude::*;
/// use flashrnn::{AnyBackend, BackendName};
///
/// # fn main() -> flashrnn::Result<()> {
/// let backend = AnyBackend::new("cpu".parse::<BackendName>()?)?;
/// let plan = backend.plan(&Lstm, &Problem::new(2, 100, 4, 32))?;
/// let (r, b) = (backend.alloc::<f32>(4 * 4 * 32 * 32)?, backend.alloc::<f32>(4 * 4 * 32)?);
/// let weights = plan.pack(backend.view(&r), backend.view(&b))?;
/// let wx = backend.upload(&vec![0.5; 2 * 100 * 4 * 4 * 32])?;
/// let mut h = backend.alloc(2 * 100 * 4 * 32)?;
/// plan.forward(Forward { h: Some(backend.view_mut(&mut h)), ..Forward::new(&weights, backend.view(&wx)) })?;
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
    /// Any GPU, or a driver for GPUs that runs on the CPU.
    #[cfg(feature = "wgpu")]
    Wgpu(crate::Wgpu),
}

/// Evaluates an expression with what the variant at hand holds, compiled once for each backend.
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

/// As [`each`], with the result wrapped in the same variant of another type.
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

use {each, wrap};

impl AnyBackend {
    /// Finds the backend of this name; [`BackendName::Auto`] as [`AnyBackend::auto`] does for f32.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where this program was built without it, [`Error::Device`] where its
    /// device, driver or libraries are missing.
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
            #[allow(unreachable_patterns, reason = "with every feature there is no other name")]
            other => Err(not_compiled_in(other)),
        }
    }

    /// Finds a GPU that computes in `dtype`, CUDA's before wgpu's, else the CPU. A driver for GPUs
    /// that runs on the CPU is none.
    ///
    /// # Errors
    /// Where there is no such GPU and this program was built without the feature `cpu`: why the
    /// last of the GPUs was not found.
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

    /// Whether a GPU computes.
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

impl Backend for AnyBackend {
    type Buffer<P: Pod + Send + Sync> = AnyBuffer<P>;
    type View<'a, P: Pod + Send + Sync> = AnyView<'a, P>;
    type ViewMut<'a, P: Pod + Send + Sync> = AnyViewMut<'a, P>;
    type Packed<T: Element> = AnyPacked<T>;
    type PackedOrder = AnyOrder;
    type Plan<T: Element, W: Element> = AnyPlan<T, W>;

    fn info(&self) -> Info {
        each!(self, Self(backend) => backend.info())
    }

    fn checks_lengths(&self) -> bool {
        each!(self, Self(backend) => backend.checks_lengths())
    }

    fn alloc<P: Pod + Send + Sync>(&self, len: usize) -> Result<AnyBuffer<P>> {
        Ok(wrap!(self, Self(backend) => AnyBuffer(backend.alloc(len)?)))
    }

    fn upload<P: Pod + Send + Sync>(&self, data: &[P]) -> Result<AnyBuffer<P>> {
        Ok(wrap!(self, Self(backend) => AnyBuffer(backend.upload(data)?)))
    }

    fn download<P: Pod + Send + Sync>(&self, view: AnyView<'_, P>) -> Result<Vec<P>> {
        match self {
            #[cfg(feature = "cpu")]
            Self::Cpu(cpu) => cpu.download(own::<crate::Cpu, P>("view", view)?),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.download(own::<crate::Cuda, P>("view", view)?),
            #[cfg(feature = "wgpu")]
            Self::Wgpu(wgpu) => wgpu.download(own::<crate::Wgpu, P>("view", view)?),
        }
    }

    fn synchronize(&self) -> Result<()> {
        each!(self, Self(backend) => backend.synchronize())
    }

    fn trim(&self) -> Result<()> {
        each!(self, Self(backend) => backend.trim())
    }

    fn view<'a, P: Pod + Send + Sync>(&self, buffer: &'a AnyBuffer<P>) -> AnyView<'a, P> {
        buffer.view()
    }

    fn view_mut<'a, P: Pod + Send + Sync>(
        &self,
        buffer: &'a mut AnyBuffer<P>,
    ) -> AnyViewMut<'a, P> {
        buffer.view_mut()
    }

    fn plan<T: Element, W: Element, C: Cell>(
        &self,
        cell: &C,
        problem: &Problem,
    ) -> Result<AnyPlan<T, W>> {
        AnyPlan::new(self, cell, problem)
    }
}
