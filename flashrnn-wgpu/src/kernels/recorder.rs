//! Records the dispatches and copies of a call.

use flashrnn_core::{Error, Result};

use super::uniforms::MAX_DISPATCHES;
use super::{Kernel, Kernels};
use crate::call::Params;
use crate::memory::View;
use crate::memory::binding::Binding;
use crate::programs::tensors::TensorSet;
use crate::select;

/// The number of a time loop's dispatches that are submitted together. The device runs them while
/// the next ones are recorded.
const SUBMITTED: usize = 64;

/// Records the dispatches and copies of one call, in order.
pub(crate) struct Recorder<'a> {
    kernels: &'a Kernels,
    encoder: wgpu::CommandEncoder,
}

impl<'a> Recorder<'a> {
    pub fn new(kernels: &'a Kernels) -> Self {
        Self { kernels, encoder: kernels.device.handle.create_command_encoder(&Default::default()) }
    }

    /// Enqueues everything recorded.
    pub fn submit(self) {
        self.kernels.device.queue.submit([self.encoder.finish()]);
    }

    /// Copies a tensor, if present, to word `at` of `to`.
    ///
    /// # Errors
    /// [`Error::Argument`] if the view shares its first or last word with other elements.
    pub fn copy_in<P>(
        &mut self,
        tensor: &'static str,
        from: Option<View<'_, P>>,
        to: Binding<'_>,
        at: u32,
    ) -> Result<()> {
        let Some(from) = from.filter(|from| from.len > 0) else { return Ok(()) };
        let bytes = from.bytes();
        let end = bytes.end.next_multiple_of(4);
        if !bytes.start.is_multiple_of(4) || end > from.buffer.size() {
            return Err(Error::Argument {
                tensor,
                why: "must begin and end at a multiple of 4 bytes",
            });
        }
        let to_first = to.offset + u64::from(at) * 4;
        let size = end - bytes.start;
        self.encoder.copy_buffer_to_buffer(from.buffer, bytes.start, to.buffer, to_first, size);
        Ok(())
    }

    /// Zeroes `words` words of `to`, beginning with word `at`.
    pub fn clear(&mut self, to: Binding<'_>, at: u32, words: usize) {
        if words > 0 {
            let first = to.offset + u64::from(at) * 4;
            self.encoder.clear_buffer(to.buffer, first, Some(words as u64 * 4));
        }
    }

    /// Copies words of `from`, beginning with word `at`, to a tensor of 4-byte elements.
    pub fn copy_out<P>(&mut self, from: Binding<'_>, at: u32, to: View<'_, P>) {
        let bytes = to.bytes();
        if !bytes.is_empty() {
            let first = from.offset + u64::from(at) * 4;
            let size = bytes.end - bytes.start;
            self.encoder.copy_buffer_to_buffer(from.buffer, first, to.buffer, bytes.start, size);
        }
    }

    /// Dispatches a kernel once, in `groups` workgroups.
    pub fn run<'b>(
        &mut self,
        kernel: &Kernel,
        params: &Params,
        tensors: impl TensorSet<Binding<'b>>,
        groups: usize,
    ) {
        if groups > 0 {
            let bind_group = self.bind(kernel, *params, tensors);
            self.dispatch(kernel, &bind_group, groups, 1);
        }
    }

    /// Dispatches a kernel for `steps` steps, beginning with `params.first_step`. One dispatch runs
    /// `steps_per_dispatch` of them.
    pub fn run_steps<'b>(
        &mut self,
        kernel: &Kernel,
        params: &Params,
        tensors: impl TensorSet<Binding<'b>> + Copy,
        groups: usize,
        steps: usize,
        steps_per_dispatch: usize,
    ) {
        if groups == 0 {
            return;
        }
        let end_step = params.first_step + steps as u32;
        let dispatches = steps.div_ceil(steps_per_dispatch);
        for first in (0..dispatches).step_by(MAX_DISPATCHES) {
            let first_step = params.first_step + (first * steps_per_dispatch) as u32;
            let bind_group = self.bind(kernel, Params { first_step, end_step, ..*params }, tensors);
            self.dispatch(kernel, &bind_group, groups, (dispatches - first).min(MAX_DISPATCHES));
        }
    }

    /// Dispatches a kernel at most [`MAX_DISPATCHES`] times.
    fn dispatch(
        &mut self,
        kernel: &Kernel,
        bind_group: &wgpu::BindGroup,
        groups: usize,
        dispatches: usize,
    ) {
        let Kernels { device, uniforms, .. } = self.kernels;
        let [x, y, z] = select::dispatch(groups);
        for begin in (0..dispatches).step_by(SUBMITTED) {
            let mut pass = self.encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: Some(kernel.name),
                timestamp_writes: None,
            });
            pass.set_pipeline(&kernel.pipeline);
            for i in begin..dispatches.min(begin + SUBMITTED) {
                pass.set_bind_group(0, bind_group, &[uniforms.step_offset(i)]);
                pass.dispatch_workgroups(x, y, z);
            }
            drop(pass);
            if dispatches > SUBMITTED {
                let next = device.handle.create_command_encoder(&Default::default());
                let encoder = std::mem::replace(&mut self.encoder, next);
                device.queue.submit([encoder.finish()]);
            }
        }
    }

    fn bind<'b, S: TensorSet<Binding<'b>>>(
        &self,
        kernel: &Kernel,
        params: Params,
        tensors: S,
    ) -> wgpu::BindGroup {
        debug_assert_eq!(S::NAMES, kernel.tensors, "{}", kernel.name);
        let Kernels { device, uniforms, .. } = self.kernels;
        let params = uniforms.params(device, params);
        let resources = [Binding::whole(&params).resource(), uniforms.step()]
            .into_iter()
            .chain(tensors.into_vec().into_iter().map(Binding::resource));
        let entries: Vec<_> = resources
            .enumerate()
            .map(|(binding, resource)| wgpu::BindGroupEntry { binding: binding as u32, resource })
            .collect();
        device.handle.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(kernel.name),
            layout: &kernel.layout,
            entries: &entries,
        })
    }
}
