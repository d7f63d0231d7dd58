//! Pipelines, and calls that dispatch them.

use std::num::NonZeroU64;
use std::sync::Arc;

use flashrnn_core::{Error, Result};

use crate::cache::Cache;
use crate::call::Params;
use crate::device::{Device, SLOT, STEPS, lock};
use crate::memory::View;
use crate::programs::{Program, Tensor};
use crate::select;

/// The dispatches of a time loop that are submitted at a time, so that the device runs some while the next are recorded.
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
            Error::Device(log) if device.lost.get().is_none() => Error::Compile { kernel: name.into(), log },
            other => other,
        };
        let kernel = device.scope(0, || Ok(Self::new(device, program, name))).map_err(compile)?;
        Ok(lock(&device.kernels).entry(key).or_insert(Arc::new(kernel)).clone())
    }

    fn new(device: &Device, program: &Program, name: &'static str) -> Self {
        let entry = |binding: usize, ty, dynamic, size| wgpu::BindGroupLayoutEntry {
            binding: binding as u32,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: dynamic, min_binding_size: size },
            count: None,
        };
        let uniform = wgpu::BufferBindingType::Uniform;
        let mut entries = vec![entry(0, uniform, false, None), entry(1, uniform, true, NonZeroU64::new(16))];
        for (i, tensor) in program.tensors.iter().enumerate() {
            let ty = wgpu::BufferBindingType::Storage { read_only: !tensor.written };
            entries.push(entry(i + 2, ty, false, None));
        }
        let wgpu = &device.device;
        let module = wgpu::ShaderModuleDescriptor {
            label: Some(name),
            source: wgpu::ShaderSource::Wgsl(program.source.as_str().into()),
        };
        // SAFETY: the shaders are ours, with what is printed of a cell, which is arithmetic without indices. Every index into an array
        // is below its length whatever the tensors hold, for lengths are clamped; every loop ends; no divisor is zero. Buffers are
        // bound by sizes that calls have checked, and devices check accesses to them where they can.
        #[allow(unsafe_code)]
        let module =
            unsafe { wgpu.create_shader_module_trusted(module, wgpu::ShaderRuntimeChecks::unchecked()) };
        let layout = wgpu.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(name),
            entries: &entries,
        });
        let pipeline_layout = wgpu.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(name),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let cache = device.cache.get_or_init(|| Cache::new(wgpu));
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

/// Part of a buffer that a kernel is given for one of its tensors, from a multiple of the alignment on.
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

    /// The view, and where it begins in what is bound, in elements.
    pub fn view<P>(device: &Device, view: View<'a, P>) -> (Self, u32) {
        let alignment = u64::from(device.limits.min_storage_buffer_offset_alignment.max(4));
        let bytes = size_of::<P>().max(1) as u64;
        let first = view.first as u64 * bytes;
        let offset = first / alignment * alignment;
        // An empty view binds one word, which nothing reads.
        let size = (first + view.len as u64 * bytes - offset).next_multiple_of(4).max(4);
        (Self { buffer: view.buffer, offset, size }, ((first - offset) / bytes) as u32)
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

/// A kernel's parameters on the device.
pub(crate) struct Uniform {
    buffer: wgpu::Buffer,
    params: Params,
}

impl Uniform {
    pub fn new(device: &Device, params: Params) -> Self {
        let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let buffer = device.buffer("params", size_of::<Params>() as u64, usage);
        let uniform = Self { buffer, params };
        uniform.write(device);
        uniform
    }

    /// Other parameters, for what is submitted from now on. The same ones cost nothing.
    pub fn set(&mut self, device: &Device, params: Params) {
        if bytemuck::bytes_of(&self.params) != bytemuck::bytes_of(&params) {
            self.params = params;
            self.write(device);
        }
    }

    fn write(&self, device: &Device) {
        device.write(&self.buffer, 0, bytemuck::bytes_of(&self.params));
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

    /// Copies a tensor to `to`, from word `at` on.
    ///
    /// # Errors
    /// [`Error::Argument`] where the view begins or ends amid a word that is not all its buffer's.
    pub fn copy_in<P>(
        &mut self,
        tensor: &'static str,
        from: View<'_, P>,
        to: &wgpu::Buffer,
        at: u32,
    ) -> Result<()> {
        if from.len == 0 {
            return Ok(());
        }
        let (first, bytes) = (from.first * size_of::<P>(), from.len * size_of::<P>());
        if !first.is_multiple_of(4) || (first + bytes.next_multiple_of(4)) as u64 > from.buffer.size() {
            return Err(Error::Argument { tensor, why: "must begin and end at a multiple of 4 bytes" });
        }
        let size = bytes.next_multiple_of(4) as u64;
        self.encoder.copy_buffer_to_buffer(from.buffer, first as u64, to, u64::from(at) * 4, size);
        Ok(())
    }

    /// Makes words of `buffer` zeros, from `at` on.
    pub fn clear(&mut self, buffer: &wgpu::Buffer, at: u32, words: usize) {
        if words > 0 {
            self.encoder.clear_buffer(buffer, u64::from(at) * 4, Some(words as u64 * 4));
        }
    }

    /// Copies words of `from`, from `at` on, to an f32 tensor.
    pub fn copy_out(&mut self, from: &wgpu::Buffer, at: u32, to: View<'_, impl Sized>) {
        let size = (to.len * size_of::<f32>()) as u64;
        if size > 0 {
            let first = (to.first * size_of::<f32>()) as u64;
            self.encoder.copy_buffer_to_buffer(from, u64::from(at) * 4, to.buffer, first, size);
        }
    }

    /// Dispatches a kernel once.
    pub fn run(&mut self, kernel: &Kernel, params: &Params, bound: &[Bound<'_>], groups: usize) {
        self.run_with(kernel, &Uniform::new(self.device, *params), bound, groups, 1);
    }

    /// Dispatches a kernel for `steps` steps from `params.first_step` on, so many of them a dispatch.
    pub fn run_steps(
        &mut self,
        kernel: &Kernel,
        params: &Params,
        bound: &[Bound<'_>],
        groups: usize,
        steps: usize,
        of_dispatch: usize,
    ) {
        let end_step = params.first_step + steps as u32;
        let dispatches = steps.div_ceil(of_dispatch);
        for first in (0..dispatches).step_by(STEPS) {
            let first_step = params.first_step + (first * of_dispatch) as u32;
            let uniform = Uniform::new(self.device, Params { first_step, end_step, ..*params });
            self.run_with(kernel, &uniform, bound, groups, (dispatches - first).min(STEPS));
        }
    }

    /// Dispatches a kernel at most [`STEPS`] times, with parameters that are on the device.
    pub fn run_with(
        &mut self,
        kernel: &Kernel,
        uniform: &Uniform,
        bound: &[Bound<'_>],
        groups: usize,
        dispatches: usize,
    ) {
        debug_assert_eq!(bound.len(), kernel.tensors.len(), "{}", kernel.name);
        if groups == 0 {
            return;
        }
        let [x, y, z] = select::dispatch(groups);
        let group = self.bind(kernel, uniform, bound);
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

    fn bind(&self, kernel: &Kernel, uniform: &Uniform, bound: &[Bound<'_>]) -> wgpu::BindGroup {
        let device = self.device;
        let step = wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: &device.steps,
            offset: 0,
            size: NonZeroU64::new(16),
        });
        let resources = [Bound::whole(&uniform.buffer).resource(), step]
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
