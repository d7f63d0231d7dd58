//! The uniform buffers of kernels.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::Mutex;

use flashrnn_gpu::lock;

use crate::call::{Params, Step};
use crate::device::Device;

/// Maximum number of dispatches with one bind group.
pub(crate) const MAX_DISPATCHES: usize = 1024;

/// Maximum number of [`Params`] that are kept on the device.
const MAX_PARAMS: usize = 256;

/// The bits of [`Params`], a key for a map.
type Words = [u32; size_of::<Params>() / 4];

const USAGES: wgpu::BufferUsages = wgpu::BufferUsages::UNIFORM.union(wgpu::BufferUsages::COPY_DST);

/// Buffers of [`Params`] and of [`Step`]s.
pub(crate) struct Uniforms {
    /// [`MAX_DISPATCHES`] [`Step`]s, `stride` bytes apart.
    steps: wgpu::Buffer,
    stride: u32,
    /// Buffers by content, so that calls with equal arguments share one. A buffer is written only
    /// once.
    params: Mutex<HashMap<Words, wgpu::Buffer>>,
}

impl Uniforms {
    pub fn new(device: &Device) -> Self {
        let step_bytes = size_of::<Step>();
        let stride = device.limits.min_uniform_buffer_offset_alignment.max(step_bytes as u32);
        let mut content = vec![0; stride as usize * MAX_DISPATCHES];
        for (index, bytes) in content.chunks_mut(stride as usize).enumerate() {
            let step = Step { index: index as u32, ..Step::default() };
            bytes[..step_bytes].copy_from_slice(bytemuck::bytes_of(&step));
        }
        let steps = device.buffer("steps", content.len() as u64, USAGES);
        device.write(&steps, 0, &content);
        Self { steps, stride, params: Mutex::default() }
    }

    /// Returns a buffer that holds `params`.
    pub fn params(&self, device: &Device, params: Params) -> wgpu::Buffer {
        let mut kept = lock(&self.params);
        let words: Words = bytemuck::cast(params);
        if let Some(buffer) = kept.get(&words) {
            return buffer.clone();
        }
        if kept.len() >= MAX_PARAMS {
            kept.clear();
        }
        let buffer = device.buffer("params", size_of::<Params>() as u64, USAGES);
        // Written before the lock is released, and so before any thread submits work that reads it.
        device.write(&buffer, 0, bytemuck::bytes_of(&params));
        kept.insert(words, buffer.clone());
        buffer
    }

    /// Returns the binding of a [`Step`], at a dynamic offset.
    pub fn step(&self) -> wgpu::BindingResource<'_> {
        wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: &self.steps,
            offset: 0,
            size: NonZeroU64::new(size_of::<Step>() as u64),
        })
    }

    /// Returns the dynamic offset of a [`Step`].
    pub fn step_offset(&self, index: usize) -> u32 {
        index as u32 * self.stride
    }

    /// Drops all [`Params`].
    pub fn trim(&self) {
        lock(&self.params).clear();
    }
}
