//! Compiled kernels.

use std::num::NonZeroU64;

use super::cache::Cache;
use crate::device::Device;
use crate::programs::Program;

/// A compiled entry point.
pub(crate) struct Kernel {
    pub name: &'static str,
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
    /// The names of the storage buffers, in the order of their bindings.
    pub tensors: &'static [&'static str],
}

impl Kernel {
    /// Compiles an entry point. wgpu reports errors to the device's scope.
    pub fn compile(
        device: &Device,
        cache: Option<&Cache>,
        program: &Program,
        name: &'static str,
    ) -> Self {
        let wgpu = &device.handle;
        let module = wgpu::ShaderModuleDescriptor {
            label: Some(name),
            source: wgpu::ShaderSource::Wgsl(program.source.as_str().into()),
        };
        // SAFETY: the shaders are this crate's, with a printed cell, which is arithmetic without
        // indices. Every index into an array is below its length whatever the tensors hold, since
        // lengths are clamped; every loop ends; no divisor is zero. Core has checked the tensors'
        // sizes and the weights' layout (`Forward::check` and its siblings); `work` and the packed
        // weights have the sizes that layout.rs and `select::packed` compute. Devices also check
        // accesses to buffers where they can.
        #[allow(unsafe_code)]
        let module = unsafe {
            wgpu.create_shader_module_trusted(module, wgpu::ShaderRuntimeChecks::unchecked())
        };
        let layout = wgpu.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(name),
            entries: &layout_entries(program),
        });
        let pipeline_layout = wgpu.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(name),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = wgpu.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(name),
            compilation_options: Default::default(),
            cache: cache.map(Cache::pipelines),
        });
        Self { name, pipeline, layout, tensors: program.names }
    }
}

/// Returns the bindings of a program: `params`, `at_step` at a dynamic offset, then the storage
/// buffers.
fn layout_entries(program: &Program) -> Vec<wgpu::BindGroupLayoutEntry> {
    let entry = |binding: usize, ty, dynamic, size| wgpu::BindGroupLayoutEntry {
        binding: binding as u32,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: dynamic, min_binding_size: size },
        count: None,
    };
    let uniform = wgpu::BufferBindingType::Uniform;
    let mut entries =
        vec![entry(0, uniform, false, None), entry(1, uniform, true, NonZeroU64::new(16))];
    for (i, tensor) in program.tensors.iter().enumerate() {
        let ty = wgpu::BufferBindingType::Storage { read_only: !tensor.is_writable() };
        entries.push(entry(i + 2, ty, false, None));
    }
    entries
}
