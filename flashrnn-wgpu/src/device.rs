//! A device and its queue, and how their errors become ours.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak, mpsc};

use bytemuck::Pod;
use flashrnn_core::{Error, Result};
use flashrnn_gpu::lock;

use crate::kernels::cache::Cache;
use crate::kernels::{Kernel, Uniforms};
use crate::memory::operands;
use crate::memory::scratch::Pool;
use crate::memory::{Buffer, View};
use crate::probe;
use crate::select::{self, Adapter};

/// What the buffers of this crate may be used for.
const USAGES: wgpu::BufferUsages = wgpu::BufferUsages::STORAGE
    .union(wgpu::BufferUsages::COPY_SRC)
    .union(wgpu::BufferUsages::COPY_DST);

/// Tells one [`Device`] from another. wgpu's own comparison takes devices of different instances
/// for equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceId(u64);

impl DeviceId {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// What a [`Wgpu`] and its plans share.
pub(crate) struct Device {
    pub id: DeviceId,
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub name: String,
    pub limits: wgpu::Limits,
    /// Stands for tensors that are absent: for those read, and for those written, each a slot of
    /// its own.
    pub absent: [wgpu::Buffer; 2],
    /// The `Step`s of shaders/params.wgsl, [`STEPS`] of them, [`Device::step_stride`] bytes apart.
    pub steps: wgpu::Buffer,
    /// Kernels by their text and entry point.
    pub kernels: Mutex<HashMap<String, Arc<Kernel>>>,
    /// The parameters of kernels.
    pub uniforms: Uniforms,
    /// Memory that plans keep for their calls.
    pools: Mutex<Vec<Weak<Pool>>>,
    /// Where pipelines are kept between processes; set with the first kernel.
    pub cache: OnceLock<Option<Cache>>,
    /// It was opened with what the kernels with cooperative matrices need.
    pub matrices: bool,
    long_loops: OnceLock<bool>,
    unpacks: OnceLock<bool>,
    subgroups: OnceLock<bool>,
    failures: Arc<Mutex<Option<Error>>>,
    /// Why nothing more can be done, once the device is lost.
    pub lost: Arc<OnceLock<Error>>,
    /// How many buffers there have been, those in which wgpu uploads included.
    #[cfg(test)]
    pub buffers_made: std::sync::atomic::AtomicUsize,
}

/// The most time steps of one compute pass.
pub(crate) const STEPS: usize = 1024;

/// Bytes from one slot of `absent` to the next: the largest alignment of a binding.
pub(crate) const SLOT: u64 = 256;

pub(crate) fn failure(error: wgpu::Error, bytes: usize) -> Error {
    match error {
        wgpu::Error::OutOfMemory { .. } => Error::OutOfMemory { bytes },
        other => Error::device(format!("wgpu: {other}")),
    }
}

impl Device {
    pub fn new(
        device: wgpu::Device,
        queue: wgpu::Queue,
        name: String,
        failures: Arc<Mutex<Option<Error>>>,
    ) -> Self {
        let limits = device.limits();
        let buffer = |label, size, usage| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size,
                usage,
                mapped_at_creation: false,
            })
        };
        let absent = [(); 2].map(|()| buffer("absent", 16 * SLOT, USAGES));
        let stride = u64::from(limits.min_uniform_buffer_offset_alignment.max(16));
        let uniform = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let steps = buffer("steps", stride * STEPS as u64, uniform);
        let words = stride as usize / size_of::<u32>();
        let contents: Vec<u32> = (0..STEPS * words)
            .map(|i| if i % words == 0 { (i / words) as u32 } else { 0 })
            .collect();
        queue.write_buffer(&steps, 0, bytemuck::cast_slice(&contents));
        Self {
            id: DeviceId::new(),
            device,
            queue,
            name,
            limits,
            matrices: false,
            absent,
            steps,
            kernels: Mutex::default(),
            uniforms: Uniforms::default(),
            pools: Mutex::default(),
            cache: OnceLock::new(),
            long_loops: OnceLock::new(),
            unpacks: OnceLock::new(),
            subgroups: OnceLock::new(),
            failures,
            lost: Arc::default(),
            #[cfg(test)]
            buffers_made: Default::default(),
        }
    }

    /// Bytes from one step's uniform value to the next.
    pub fn step_stride(&self) -> u32 {
        self.limits.min_uniform_buffer_offset_alignment.max(16)
    }

    /// The properties that drive kernel selection.
    pub fn adapter(&self) -> Adapter {
        let limits = &self.limits;
        Adapter {
            cpu: self.device.adapter_info().device_type == wgpu::DeviceType::Cpu,
            invocations: limits
                .max_compute_invocations_per_workgroup
                .min(limits.max_compute_workgroup_size_x) as usize,
            workgroup_bytes: limits.max_compute_workgroup_storage_size as usize,
            matrix: self.matrices,
            subgroup: self.subgroup(),
        }
    }

    fn subgroup(&self) -> usize {
        let info = self.device.adapter_info();
        let has = self.device.features().contains(wgpu::Features::SUBGROUP);
        select::subgroup(has, info.subgroup_min_size, info.subgroup_max_size)
    }

    /// The most bytes of a tensor: of what the device takes, what [`Device::memory`] rounds to and
    /// shaders can count in a u32.
    pub fn most_bytes(&self) -> u64 {
        let most = self.limits.max_buffer_size.min(self.limits.max_storage_buffer_binding_size);
        most.min(1 << 32).min(isize::MAX as u64) / 16 * 16
    }

    /// Whether a kernel can be given these bytes of a buffer: from the alignment before them on.
    pub fn binds(&self, bytes: &Range<u64>) -> bool {
        let first = bytes.start / self.alignment() * self.alignment();
        bytes.end.next_multiple_of(4) - first <= self.limits.max_storage_buffer_binding_size
    }

    /// What a binding's offset must be a multiple of, in bytes.
    pub fn alignment(&self) -> u64 {
        self.limits.min_storage_buffer_offset_alignment.max(4).into()
    }

    /// Makes a pool for a plan, which [`Device::trim`] reaches as long as the plan exists.
    pub fn pool(&self) -> Arc<Pool> {
        let pool = Arc::new(Pool::default());
        let mut pools = lock(&self.pools);
        pools.retain(|pool| pool.strong_count() > 0);
        pools.push(Arc::downgrade(&pool));
        pool
    }

    /// Drops the memory that plans keep for their calls, and waits for the calls that used it: only
    /// then does wgpu free it.
    pub fn trim(&self) -> Result<()> {
        for pool in lock(&self.pools).iter().filter_map(Weak::upgrade) {
            pool.trim();
        }
        self.uniforms.trim();
        self.wait()
    }

    /// Whether the driver runs long loops to their end. The first time, it waits for the device.
    pub fn long_loops(&self) -> Result<bool> {
        self.known(&self.long_loops, probe::long_loops)
    }

    /// Whether the driver's own conversion of f16 is exact. The first time, it waits for the
    /// device.
    pub fn unpacks(&self) -> Result<bool> {
        self.known(&self.unpacks, probe::unpacks)
    }

    /// Whether subgroups are as [`Adapter::subgroup`] says. The first time, it waits for the
    /// device.
    pub fn subgroups(&self) -> Result<bool> {
        self.known(&self.subgroups, probe::subgroups)
    }

    fn known(&self, answer: &OnceLock<bool>, find: fn(&Self) -> Result<bool>) -> Result<bool> {
        match answer.get() {
            Some(&known) => Ok(known),
            None => find(self).map(|found| *answer.get_or_init(|| found)),
        }
    }

    /// Runs `work`, and turns what wgpu reports meanwhile into an error. `bytes` is what it
    /// allocates.
    pub fn scope<R>(&self, bytes: usize, work: impl FnOnce() -> Result<R>) -> Result<R> {
        let filters = [
            wgpu::ErrorFilter::Internal,
            wgpu::ErrorFilter::OutOfMemory,
            wgpu::ErrorFilter::Validation,
        ];
        let mut scopes: Vec<_> =
            filters.into_iter().map(|filter| self.device.push_error_scope(filter)).collect();
        let done = work();
        let mut first = None;
        while let Some(scope) = scopes.pop() {
            if let Some(error) = pollster::block_on(scope.pop()) {
                first.get_or_insert(error);
            }
        }
        // wgpu tells of a loss apart from other errors: when it happens, or if the caller destroyed
        // the device when it is waited for.
        match (self.lost.get(), first) {
            (Some(lost), _) => Err(lost.clone()),
            (None, Some(error)) => Err(failure(error, bytes)),
            (None, None) => done,
        }
    }

    /// A buffer, which holds zeros.
    pub fn buffer(&self, label: &str, size: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
        self.count_buffer();
        let label = Some(label);
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label,
            size,
            usage,
            mapped_at_creation: false,
        })
    }

    /// Writes whole words to a buffer, before what is submitted from now on.
    pub fn write(&self, buffer: &wgpu::Buffer, at: u64, words: &[u8]) {
        self.count_buffer();
        self.queue.write_buffer(buffer, at, words);
    }

    fn count_buffer(&self) {
        #[cfg(test)]
        self.buffers_made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    /// Zeroed memory of at least `bytes` bytes.
    pub fn memory(&self, bytes: usize) -> Result<wgpu::Buffer> {
        let out_of_memory = Error::OutOfMemory { bytes };
        let size = bytes.checked_next_multiple_of(16).ok_or(out_of_memory.clone())?.max(16) as u64;
        if size > self.limits.max_buffer_size {
            return Err(out_of_memory);
        }
        self.scope(bytes, || Ok(self.buffer("memory", size, USAGES)))
    }

    pub fn zeroed<P>(&self, len: usize) -> Result<Buffer<P>> {
        let bytes =
            len.checked_mul(size_of::<P>()).ok_or(Error::OutOfMemory { bytes: usize::MAX })?;
        Ok(Buffer::new(self.memory(bytes)?, len, self.id))
    }

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

    pub fn download<P: Pod>(&self, view: View<'_, P>) -> Result<Vec<P>> {
        operands::check(self, [operands::read("view", Some(view))])?;
        if view.len == 0 {
            return Ok(Vec::new());
        }
        let (first, bytes) = (view.first * size_of::<P>(), view.len * size_of::<P>());
        let start = first / 4 * 4;
        let size = ((first + bytes).next_multiple_of(4) - start) as u64;
        let staging = self.scope(bytes, || {
            let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
            let staging = self.buffer("download", size, usage);
            let mut encoder = self.device.create_command_encoder(&Default::default());
            encoder.copy_buffer_to_buffer(view.buffer, start as u64, &staging, 0, size);
            self.queue.submit([encoder.finish()]);
            Ok(staging)
        })?;
        let (sender, receiver) = mpsc::channel();
        staging.map_async(wgpu::MapMode::Read, .., move |mapped| {
            // The receiver may have given up.
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

    /// Waits for all that was submitted.
    fn wait(&self) -> Result<()> {
        self.device
            .poll(wgpu::PollType::wait_indefinitely())
            .map_err(|error| Error::device_because("wgpu: waiting for the device", error))?;
        self.lost.get().cloned().map_or(Ok(()), Err)
    }

    pub fn synchronize(&self) -> Result<()> {
        self.wait()?;
        lock(&self.failures).take().map_or(Ok(()), Err)
    }
}
