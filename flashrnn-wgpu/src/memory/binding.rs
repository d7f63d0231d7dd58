//! Ranges of buffers that are bound to kernels.

use std::num::NonZeroU64;

use crate::device::{Device, PLACEHOLDER_BYTES};
use crate::memory::View;

/// A range of a buffer that is bound to a kernel. It begins at a multiple of the device's
/// alignment.
#[derive(Clone, Copy)]
pub(crate) struct Binding<'a> {
    pub buffer: &'a wgpu::Buffer,
    pub offset: u64,
    size: u64,
}

impl<'a> Binding<'a> {
    /// Binds a whole buffer.
    pub fn whole(buffer: &'a wgpu::Buffer) -> Self {
        Self { buffer, offset: 0, size: buffer.size() }
    }

    /// Binds `bytes` bytes at `offset`, which is aligned.
    pub fn range(buffer: &'a wgpu::Buffer, offset: u64, bytes: u64) -> Self {
        Self { buffer, offset, size: bytes.next_multiple_of(4).max(4) }
    }

    /// Binds a view that is not empty. Also returns the index of its first element in the binding.
    pub fn view<P>(device: &Device, view: View<'a, P>) -> (Self, u32) {
        let bytes = view.bytes();
        let offset = bytes.start / device.alignment() * device.alignment();
        let first = (bytes.start - offset) / size_of::<P>().max(1) as u64;
        (Self::range(view.buffer, offset, bytes.end - offset), first as u32)
    }

    /// Binds a placeholder for an absent tensor. Each tensor that is written needs its own `slot`.
    pub fn absent(device: &'a Device, written: bool, slot: u64) -> Self {
        let buffer = &device.placeholders[usize::from(written)];
        Self { buffer, offset: slot % 16 * PLACEHOLDER_BYTES, size: PLACEHOLDER_BYTES }
    }

    /// Converts the binding to wgpu's type.
    pub fn resource(self) -> wgpu::BindingResource<'a> {
        wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: self.buffer,
            offset: self.offset,
            size: NonZeroU64::new(self.size),
        })
    }
}
