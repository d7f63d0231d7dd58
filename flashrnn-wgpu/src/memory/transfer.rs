//! Allocates, fills and reads buffers.

use std::sync::mpsc;

use bytemuck::Pod;
use flashrnn_core::{Error, Result};

use crate::device::Device;
use crate::memory::operands::{self, read};
use crate::memory::{Buffer, View};

impl Device {
    /// Allocates a buffer of `len` zeros.
    pub fn zeroed<P>(&self, len: usize) -> Result<Buffer<P>> {
        let bytes =
            len.checked_mul(size_of::<P>()).ok_or(Error::OutOfMemory { bytes: usize::MAX })?;
        Ok(Buffer::new(self.memory(bytes)?, len, self.id))
    }

    /// Copies `data` to a new buffer.
    pub fn upload<P: Pod>(&self, data: &[P]) -> Result<Buffer<P>> {
        let buffer = self.zeroed(data.len())?;
        let bytes: &[u8] = bytemuck::cast_slice(data);
        let (whole, rest) = bytes.split_at(bytes.len() / 4 * 4);
        self.scope(bytes.len(), || {
            self.write(&buffer.buffer, 0, whole);
            if !rest.is_empty() {
                let mut word = [0; 4];
                word[..rest.len()].copy_from_slice(rest);
                self.write(&buffer.buffer, whole.len() as u64, &word);
            }
            Ok(())
        })?;
        Ok(buffer)
    }

    /// Copies a view to the host, after all work that was submitted before.
    pub fn download<P: Pod>(&self, view: View<'_, P>) -> Result<Vec<P>> {
        operands::check(self, [read("view", Some(view))])?;
        if view.len == 0 {
            return Ok(Vec::new());
        }
        let (first, bytes) = (view.first * size_of::<P>(), view.len * size_of::<P>());
        let start = first / 4 * 4;
        let size = ((first + bytes).next_multiple_of(4) - start) as u64;
        let staging = self.scope(bytes, || {
            let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
            let staging = self.buffer("download", size, usage);
            let mut encoder = self.handle.create_command_encoder(&Default::default());
            encoder.copy_buffer_to_buffer(view.buffer, start as u64, &staging, 0, size);
            self.queue.submit([encoder.finish()]);
            Ok(staging)
        })?;
        let (sender, receiver) = mpsc::channel();
        staging.map_async(wgpu::MapMode::Read, .., move |mapped| {
            // Sending fails if `synchronize` did, which drops the receiver.
            let _ = sender.send(mapped);
        });
        self.synchronize()?;
        let lost = |why: String| Error::device(format!("wgpu: download: {why}"));
        receiver
            .recv()
            .map_err(|error| lost(error.to_string()))?
            .map_err(|error| lost(error.to_string()))?;
        let mapped = staging.get_mapped_range(..).map_err(|error| lost(error.to_string()))?;
        let skipped = first - start;
        Ok(bytemuck::allocation::pod_collect_to_vec(&mapped[skipped..skipped + bytes]))
    }
}
