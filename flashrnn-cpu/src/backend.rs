//! The implementation of [`Backend`].

use bytemuck::Pod;
use flashrnn_core::{Backend, Cell, Dtype, Element, Info, Problem, Result};

use crate::cpu::Cpu;
use crate::kernel::{Packed, PackedOrder};
use crate::memory::try_filled;
use crate::plan::CpuPlan;

impl Backend for Cpu {
    type Buffer<P: Pod + Send + Sync> = Vec<P>;
    type View<'a, P: Pod + Send + Sync> = &'a [P];
    type ViewMut<'a, P: Pod + Send + Sync> = &'a mut [P];
    type Packed<T: Element> = Packed<T::Wide>;
    type PackedOrder = PackedOrder;
    type Plan<T: Element, W: Element> = CpuPlan<T, W>;

    fn info(&self) -> Info {
        let device = format!("{} threads, {}", self.threads(), self.level.name());
        Info { name: "cpu", device, dtypes: vec![Dtype::F32, Dtype::F64, Dtype::Bf16, Dtype::F16] }
    }

    fn alloc<P: Pod + Send + Sync>(&self, len: usize) -> Result<Vec<P>> {
        try_filled(P::zeroed(), len)
    }

    fn upload<P: Pod + Send + Sync>(&self, data: &[P]) -> Result<Vec<P>> {
        let mut buffer = try_filled(P::zeroed(), data.len())?;
        buffer.copy_from_slice(data);
        Ok(buffer)
    }

    fn download<P: Pod + Send + Sync>(&self, view: &[P]) -> Result<Vec<P>> {
        self.upload(view)
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn trim(&self) -> Result<()> {
        self.workspaces.trim();
        Ok(())
    }

    fn view<'a, P: Pod + Send + Sync>(&self, buffer: &'a Vec<P>) -> &'a [P] {
        buffer
    }

    fn view_mut<'a, P: Pod + Send + Sync>(&self, buffer: &'a mut Vec<P>) -> &'a mut [P] {
        buffer
    }

    fn plan<T: Element, W: Element, C: Cell>(
        &self,
        cell: &C,
        problem: &Problem,
    ) -> Result<CpuPlan<T, W>> {
        CpuPlan::new(self, cell, problem)
    }
}
