//! A wgpu device and its queue: its limits, its buffers, and the conversion of its errors.

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};

use flashrnn_core::{Error, Result};
use flashrnn_gpu::lock;

use crate::memory::DeviceId;
use crate::select::{Adapter, subgroup};

/// The usages of this crate's buffers.
const USAGES: wgpu::BufferUsages = wgpu::BufferUsages::STORAGE
    .union(wgpu::BufferUsages::COPY_SRC)
    .union(wgpu::BufferUsages::COPY_DST);

/// Size in bytes of a placeholder for an absent tensor. Placeholders follow one another, and no
/// device requires a larger alignment of a binding's offset.
pub(crate) const PLACEHOLDER_BYTES: u64 = 256;

/// A wgpu device, shared by the clones of a [`Wgpu`](crate::Wgpu) and their plans.
pub(crate) struct Device {
    pub id: DeviceId,
    pub handle: wgpu::Device,
    pub queue: wgpu::Queue,
    pub name: String,
    pub limits: wgpu::Limits,
    /// Buffers bound in place of absent tensors: one for tensors that are read, and one for tensors
    /// that are written, with a slot for each.
    pub placeholders: [wgpu::Buffer; 2],
    /// Whether the device was opened with the features of the kernels with cooperative matrices.
    pub matrices: bool,
    /// The first error that wgpu reported outside of a [`Device::scope`].
    failures: Arc<Mutex<Option<Error>>>,
    /// The error of all calls after the device is lost.
    pub lost: Arc<OnceLock<Error>>,
    /// Number of buffers made so far, including those that wgpu makes for uploads.
    #[cfg(test)]
    pub buffers_made: std::sync::atomic::AtomicUsize,
}

/// Converts a wgpu error. `bytes` is the size of the allocation that failed.
pub(crate) fn failure(error: wgpu::Error, bytes: usize) -> Error {
    match error {
        wgpu::Error::OutOfMemory { .. } => Error::OutOfMemory { bytes },
        other => Error::device(format!("wgpu: {other}")),
    }
}

impl Device {
    pub fn new(
        handle: wgpu::Device,
        queue: wgpu::Queue,
        name: String,
        failures: Arc<Mutex<Option<Error>>>,
    ) -> Self {
        let placeholders = [(); 2].map(|()| {
            handle.create_buffer(&wgpu::BufferDescriptor {
                label: Some("placeholder"),
                size: 16 * PLACEHOLDER_BYTES,
                usage: USAGES,
                mapped_at_creation: false,
            })
        });
        Self {
            id: DeviceId::unique(),
            limits: handle.limits(),
            handle,
            queue,
            name,
            placeholders,
            matrices: false,
            failures,
            lost: Arc::default(),
            #[cfg(test)]
            buffers_made: Default::default(),
        }
    }

    /// Returns the properties that drive kernel selection.
    pub fn adapter(&self) -> Adapter {
        let (limits, info) = (&self.limits, self.handle.adapter_info());
        let has_subgroups = self.handle.features().contains(wgpu::Features::SUBGROUP);
        Adapter {
            cpu: info.device_type == wgpu::DeviceType::Cpu,
            invocations: limits
                .max_compute_invocations_per_workgroup
                .min(limits.max_compute_workgroup_size_x) as usize,
            workgroup_bytes: limits.max_compute_workgroup_storage_size as usize,
            matrix: self.matrices,
            subgroup: subgroup(has_subgroups, info.subgroup_min_size, info.subgroup_max_size),
        }
    }

    /// Returns the maximum size of a tensor in bytes. It is a multiple of 16, because
    /// [`Device::memory`] rounds sizes up, and at most 4 GiB, so that shaders can index elements
    /// with a u32.
    pub fn max_tensor_bytes(&self) -> u64 {
        let max = self.limits.max_buffer_size.min(self.limits.max_storage_buffer_binding_size);
        max.min(1 << 32).min(isize::MAX as u64) / 16 * 16
    }

    /// Returns whether the range `bytes` of a buffer can be bound. The binding begins at the last
    /// aligned offset that is not beyond the start of the range.
    pub fn binds(&self, bytes: &Range<u64>) -> bool {
        let first = bytes.start / self.alignment() * self.alignment();
        bytes.end.next_multiple_of(4) - first <= self.limits.max_storage_buffer_binding_size
    }

    /// Returns the alignment of a storage buffer's binding, in bytes.
    pub fn alignment(&self) -> u64 {
        self.limits.min_storage_buffer_offset_alignment.max(4).into()
    }

    /// Runs `work` and returns the first error that wgpu reports while it runs. `bytes` is the
    /// number of bytes that `work` allocates.
    pub fn scope<R>(&self, bytes: usize, work: impl FnOnce() -> Result<R>) -> Result<R> {
        let filters = [
            wgpu::ErrorFilter::Internal,
            wgpu::ErrorFilter::OutOfMemory,
            wgpu::ErrorFilter::Validation,
        ];
        let mut scopes: Vec<_> =
            filters.into_iter().map(|filter| self.handle.push_error_scope(filter)).collect();
        let done = work();
        let mut first = None;
        while let Some(scope) = scopes.pop() {
            if let Some(error) = pollster::block_on(scope.pop()) {
                first.get_or_insert(error);
            }
        }
        // wgpu reports a lost device through a callback: at once or, if the caller destroyed the
        // device, the next time something waits for it.
        match (self.lost.get(), first) {
            (Some(lost), _) => Err(lost.clone()),
            (None, Some(error)) => Err(failure(error, bytes)),
            (None, None) => done,
        }
    }

    /// Makes a buffer of zeros.
    pub fn buffer(&self, label: &str, size: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
        self.count_buffer();
        self.handle.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size,
            usage,
            mapped_at_creation: false,
        })
    }

    /// Writes whole words to a buffer, before all work that is submitted later.
    pub fn write(&self, buffer: &wgpu::Buffer, at: u64, words: &[u8]) {
        self.count_buffer();
        self.queue.write_buffer(buffer, at, words);
    }

    fn count_buffer(&self) {
        #[cfg(test)]
        self.buffers_made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    /// Allocates at least `bytes` bytes of zeros.
    pub fn memory(&self, bytes: usize) -> Result<wgpu::Buffer> {
        let out_of_memory = Error::OutOfMemory { bytes };
        let size = bytes.checked_next_multiple_of(16).ok_or(out_of_memory.clone())?.max(16) as u64;
        if size > self.limits.max_buffer_size {
            return Err(out_of_memory);
        }
        self.scope(bytes, || Ok(self.buffer("memory", size, USAGES)))
    }

    /// Waits for all submitted work.
    pub fn wait(&self) -> Result<()> {
        self.handle
            .poll(wgpu::PollType::wait_indefinitely())
            .map_err(|error| Error::device_because("wgpu: waiting for the device", error))?;
        self.lost.get().cloned().map_or(Ok(()), Err)
    }

    /// Waits for all submitted work, and returns the first error reported since the last call.
    pub fn synchronize(&self) -> Result<()> {
        self.wait()?;
        lock(&self.failures).take().map_or(Ok(()), Err)
    }
}
