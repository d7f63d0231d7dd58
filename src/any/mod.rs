//! A backend chosen at run time, as a value of a single type: [`AnyBackend`].
//!
//! Each of its associated types (buffers, views, packed weights, plans) is or contains an enum over
//! the compiled backends. A plan rejects memory and weights of another backend with
//! [`Error::Argument`](flashrnn_core::Error::Argument). A call costs a few comparisons more than
//! the same call of the backend itself.

mod backend;
mod memory;
mod plan;

use bytemuck::Pod;
use flashrnn_core::{Backend, Cell, Element, Info, Problem, Result};

pub use self::backend::{AnyBackend, BackendName};
use self::backend::{each, wrap};
use self::memory::own;
pub use self::memory::{AnyBuffer, AnyView, AnyViewMut};
pub use self::plan::{AnyOrder, AnyPacked, AnyPlan};

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
