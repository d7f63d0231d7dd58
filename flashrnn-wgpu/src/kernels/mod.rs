//! Pipelines, and calls that dispatch them.

pub mod cache;

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};

use flashrnn_core::{Error, Result};
use flashrnn_gpu::lock;

use crate::call::Params;
use crate::device::{Device, SLOT, STEPS};
use crate::kernels::cache::Cache;
use crate::memory::View;
use crate::programs::{Program, Tensor};
use crate::select;

/// The dispatches of a time loop that are submitted at a time, so that the device runs some while
/// the next are recorded.
const SUBMITTED: usize = 64;

/// A compiled entry point.
pub(crate) struct Kernel {
    name: &'static str,
    pipeline: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
    tensors: Vec<Tensor>,
}

impl Kernel {
    /// The kernel, compiled unless the device has it already.
    pub fn get(device: &Device, program: &Program, name: &'static str) -> Result<Arc<Self>> {
        let key = format!("// {name}\n{}", program.source);
        if let Some(kernel) = lock(&device.kernels).get(&key) {
            return Ok(kernel.clone());
        }
        let compile = |why: Error| match why {
            Error::Device(why) if device.lost.get().is_none() => {
                Error::Compile { kernel: name.into(), log: why.to_string() }
            }
            other => other,
        };
        let kernel = device.scope(0, || Ok(Self::new(device, program, name))).map_err(compile)?;
        Ok(lock(&device.kernels).entry(key).or_insert(Arc::new(kernel)).clone())
    }

    fn new(device: &Device, program: &Program, name: &'static str) -> Self {
        let entry = |binding: usize, ty, dynamic, size| wgpu::BindGroupLayoutEntry {
            binding: binding as u32,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty,
                has_dynamic_offset: dynamic,
                min_binding_size: size,
            },
            count: None,
        };
        let uniform = wgpu::BufferBindingType::Uniform;
        let mut entries =
            vec![entry(0, uniform, false, None), entry(1, uniform, true, NonZeroU64::new(16))];
        for (i, tensor) in program.tensors.iter().enumerate() {
            let ty = wgpu::BufferBindingType::Storage { read_only: !tensor.written };
            entries.push(entry(i + 2, ty, false, None));
        }
        let wgpu = &device.device;
        let module = wgpu::ShaderModuleDescriptor {
            label: Some(name),
            source: wgpu::ShaderSource::Wgsl(program.source.as_str().into()),
        };
        // SAFETY: the shaders are ours, with what is printed of a cell, which is arithmetic without
        // indices. Every index into an array is below its length whatever the tensors hold, since
        // lengths are clamped; every loop ends; no divisor is zero. Core has checked the tensors'
        // sizes and the weights' layout (`Forward::check` and the like); `work` and the packed
        // weights have the size that `call.rs` and `select::packed` compute. Devices also check
        // accesses to buffers where they can.
        #[allow(unsafe_code)]
        let module = unsafe {
            wgpu.create_shader_module_trusted(module, wgpu::ShaderRuntimeChecks::unchecked())
        };
        let layout = wgpu.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(name),
            entries: &entries,
        });
        let pipeline_layout = wgpu.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(name),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let cache = device.cache.get_or_init(|| Cache::new(device));
        let pipeline = wgpu.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(name),
            compilation_options: Default::default(),
            cache: cache.as_ref().map(Cache::pipelines),
        });
        Self { name, pipeline, layout, tensors: program.tensors.clone() }
    }
}

/// Part of a buffer that a kernel is given for one of its tensors, from a multiple of the alignment
/// on.
#[derive(Clone, Copy)]
pub(crate) struct Bound<'a> {
    buffer: &'a wgpu::Buffer,
    offset: u64,
    size: u64,
}

impl<'a> Bound<'a> {
    pub fn whole(buffer: &'a wgpu::Buffer) -> Self {
        Self { buffer, offset: 0, size: buffer.size() }
    }

    /// `bytes` from `offset` on, both as they can be bound.
    pub fn part(buffer: &'a wgpu::Buffer, offset: u64, bytes: u64) -> Self {
        Self { buffer, offset, size: bytes.next_multiple_of(4).max(4) }
    }

    /// The view, which is not empty, and where it begins in what is bound, in elements.
    pub fn view<P>(device: &Device, view: View<'a, P>) -> (Self, u32) {
        let bytes = view.bytes();
        let offset = bytes.start / device.alignment() * device.alignment();
        let first = (bytes.start - offset) / size_of::<P>().max(1) as u64;
        (Self::part(view.buffer, offset, bytes.end - offset), first as u32)
    }

    /// What stands for an absent tensor: `written` for one that is written, and which of them.
    pub fn absent(device: &'a Device, written: bool, slot: u64) -> Self {
        let buffer = &device.absent[usize::from(written)];
        Self { buffer, offset: slot % 16 * SLOT, size: SLOT }
    }

    fn resource(self) -> wgpu::BindingResource<'a> {
        wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: self.buffer,
            offset: self.offset,
            size: NonZeroU64::new(self.size),
        })
    }
}

/// Max. number of parameter blocks that are kept on the device.
const MAX_UNIFORMS: usize = 256;

/// Parameters as they lie in memory.
type Words = [u32; size_of::<Params>() / 4];

/// Kernels' parameters on the device, found by their content, so that calls of the same sizes make
/// no new ones. None is ever written again.
#[derive(Default)]
pub(crate) struct Uniforms(Mutex<HashMap<Words, wgpu::Buffer>>);

impl Uniforms {
    fn get(&self, device: &Device, params: Params) -> wgpu::Buffer {
        let mut kept = lock(&self.0);
        let words: Words = bytemuck::cast(params);
        if let Some(buffer) = kept.get(&words) {
            return buffer.clone();
        }
        if kept.len() >= MAX_UNIFORMS {
            kept.clear();
        }
        let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let buffer = device.buffer("params", size_of::<Params>() as u64, usage);
        // Written before the lock is released, so before anybody submits what reads it.
        device.write(&buffer, 0, bytemuck::bytes_of(&params));
        kept.insert(words, buffer.clone());
        buffer
    }

    /// Drops all of them.
    pub fn trim(&self) {
        lock(&self.0).clear();
    }
}

/// The dispatches and copies of one call, in order.
pub(crate) struct Call<'a> {
    device: &'a Device,
    encoder: wgpu::CommandEncoder,
}

impl<'a> Call<'a> {
    pub fn new(device: &'a Device) -> Self {
        Self { device, encoder: device.device.create_command_encoder(&Default::default()) }
    }

    /// Enqueues all of it.
    pub fn submit(self) {
        self.device.queue.submit([self.encoder.finish()]);
    }

    /// Copies a tensor, where there is one, to `to`, from word `at` on.
    ///
    /// # Errors
    /// [`Error::Argument`] where the view begins or ends amid a word that is not all its buffer's.
    pub fn copy_in<P>(
        &mut self,
        tensor: &'static str,
        from: Option<View<'_, P>>,
        to: Bound<'_>,
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

    /// Zeroes words of `to`, from `at` on.
    pub fn clear(&mut self, to: Bound<'_>, at: u32, words: usize) {
        if words > 0 {
            let first = to.offset + u64::from(at) * 4;
            self.encoder.clear_buffer(to.buffer, first, Some(words as u64 * 4));
        }
    }

    /// Copies words of `from`, from `at` on, to a tensor of 4-byte elements.
    pub fn copy_out<P>(&mut self, from: Bound<'_>, at: u32, to: View<'_, P>) {
        let bytes = to.bytes();
        if !bytes.is_empty() {
            let first = from.offset + u64::from(at) * 4;
            let size = bytes.end - bytes.start;
            self.encoder.copy_buffer_to_buffer(from.buffer, first, to.buffer, bytes.start, size);
        }
    }

    /// Dispatches a kernel once.
    pub fn run(&mut self, kernel: &Kernel, params: &Params, bound: &[Bound<'_>], groups: usize) {
        self.run_with(kernel, *params, bound, groups, 1);
    }

    /// Dispatches a kernel for `steps` steps from `params.first_step` on, so many of them a
    /// dispatch.
    pub fn run_steps(
        &mut self,
        kernel: &Kernel,
        params: &Params,
        bound: &[Bound<'_>],
        groups: usize,
        steps: usize,
        of_dispatch: usize,
    ) {
        if groups == 0 {
            return;
        }
        let end_step = params.first_step + steps as u32;
        let dispatches = steps.div_ceil(of_dispatch);
        for first in (0..dispatches).step_by(STEPS) {
            let first_step = params.first_step + (first * of_dispatch) as u32;
            let params = Params { first_step, end_step, ..*params };
            self.run_with(kernel, params, bound, groups, (dispatches - first).min(STEPS));
        }
    }

    /// Dispatches a kernel at most [`STEPS`] times.
    fn run_with(
        &mut self,
        kernel: &Kernel,
        params: Params,
        bound: &[Bound<'_>],
        groups: usize,
        dispatches: usize,
    ) {
        debug_assert_eq!(bound.len(), kernel.tensors.len(), "{}", kernel.name);
        if groups == 0 {
            return;
        }
        let [x, y, z] = select::dispatch(groups);
        let group = self.bind(kernel, params, bound);
        for begin in (0..dispatches).step_by(SUBMITTED) {
            let mut pass = self.encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: Some(kernel.name),
                timestamp_writes: None,
            });
            pass.set_pipeline(&kernel.pipeline);
            for i in begin..dispatches.min(begin + SUBMITTED) {
                pass.set_bind_group(0, &group, &[i as u32 * self.device.step_stride()]);
                pass.dispatch_workgroups(x, y, z);
            }
            drop(pass);
            if dispatches > SUBMITTED {
                let next = self.device.device.create_command_encoder(&Default::default());
                let encoder = std::mem::replace(&mut self.encoder, next);
                self.device.queue.submit([encoder.finish()]);
            }
        }
    }

    fn bind(&self, kernel: &Kernel, params: Params, bound: &[Bound<'_>]) -> wgpu::BindGroup {
        let device = self.device;
        let uniform = device.uniforms.get(device, params);
        let step = wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: &device.steps,
            offset: 0,
            size: NonZeroU64::new(16),
        });
        let resources = [Bound::whole(&uniform).resource(), step]
            .into_iter()
            .chain(bound.iter().map(|bound| bound.resource()));
        let entries: Vec<_> = resources
            .enumerate()
            .map(|(binding, resource)| wgpu::BindGroupEntry { binding: binding as u32, resource })
            .collect();
        device.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(kernel.name),
            layout: &kernel.layout,
            entries: &entries,
        })
    }
}
