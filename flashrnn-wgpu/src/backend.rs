//! The handle of a device, which opens an adapter or uses the caller's device and queue.

use std::fmt;
use std::sync::{Arc, Mutex};

use flashrnn_core::{Error, Result};
use flashrnn_gpu::{Family, lock};

use crate::device::{Device, failure};
use crate::kernels::Kernels;
use crate::memory::scratch::Pools;
use crate::probe::Probes;
use crate::select::Preferences;

/// A device that wgpu found, or the caller's. Clones share the device and everything made on it:
/// buffers, packed weights, plans and compiled kernels.
#[derive(Clone)]
pub struct Wgpu {
    pub(crate) device: Arc<Device>,
    pub(crate) kernels: Arc<Kernels>,
    pub(crate) probes: Arc<Probes>,
    pub(crate) pools: Arc<Pools>,
    pub(crate) preferences: Preferences,
}

/// Lists the adapters, each with its name, kind, API and driver.
#[must_use]
pub fn adapters() -> Vec<String> {
    let list = pollster::block_on(instance().enumerate_adapters(wgpu::Backends::all()));
    let with_driver = |info: wgpu::AdapterInfo| {
        format!("{}, driver {} {}", describe(&info), info.driver, info.driver_info)
            .trim_end()
            .into()
    };
    list.iter().map(|adapter| with_driver(adapter.get_info())).collect()
}

fn describe(info: &wgpu::AdapterInfo) -> String {
    format!("{} ({:?}, {:?})", info.name, info.device_type, info.backend)
}

/// The features that the kernels with cooperative matrices need.
const MATRICES: wgpu::Features = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
    .union(wgpu::Features::SHADER_F16)
    .union(wgpu::Features::SUBGROUP);

/// Returns whether the adapter has 16 x 16 cooperative matrices that multiply f16 and add in f32,
/// in subgroups of 32.
fn has_matrices(adapter: &wgpu::Adapter) -> bool {
    use wgpu::CooperativeScalarType::{F16, F32};
    let info = adapter.get_info();
    adapter.features().contains(MATRICES)
        && (info.subgroup_min_size, info.subgroup_max_size) == (32, 32)
        && adapter.cooperative_matrix_properties().iter().any(|of| {
            (of.m_size, of.n_size, of.k_size) == (16, 16, 16)
                && (of.ab_type, of.cr_type) == (F16, F32)
        })
}

fn instance() -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle())
}

/// Ranks a kind of adapter. The adapter with the highest rank is opened.
fn preference(kind: wgpu::DeviceType) -> u32 {
    match kind {
        wgpu::DeviceType::DiscreteGpu => 4,
        wgpu::DeviceType::IntegratedGpu => 3,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 1,
        wgpu::DeviceType::Cpu => 0,
    }
}

impl Wgpu {
    /// Opens the first discrete GPU, or else the first integrated one, or else any other. Drivers
    /// that run on the CPU are used only if the environment variable `FLASHRNN_WGPU_CPU` is set and
    /// not `0`. If `FLASHRNN_WGPU_MATRIX` is set and not `0`, gradients of R in f16 are computed by
    /// cooperative matrices, an experimental feature of wgpu, on adapters that have them.
    ///
    /// Open one device and clone the handle: NVIDIA's driver 580 hung when threads opened and
    /// closed dozens of devices at the same time.
    ///
    /// # Errors
    /// [`Error::Device`] if there is no adapter, or it cannot be opened.
    pub fn new() -> Result<Self> {
        let cpu = std::env::var_os("FLASHRNN_WGPU_CPU").is_some_and(|value| value != "0");
        let wanted = |info: &wgpu::AdapterInfo| cpu || info.device_type != wgpu::DeviceType::Cpu;
        Self::open(wanted, "no GPU; FLASHRNN_WGPU_CPU=1 allows drivers that run on the CPU")
    }

    /// Opens the adapter whose name contains `name`, whatever its kind. If several match, a GPU is
    /// preferred.
    ///
    /// # Errors
    /// Same as [`Wgpu::new`].
    pub fn with_adapter(name: &str) -> Result<Self> {
        Self::open(|info| info.name.contains(name), &format!("no adapter's name contains {name:?}"))
    }

    fn open(wanted: impl Fn(&wgpu::AdapterInfo) -> bool, none: &str) -> Result<Self> {
        let mut list = pollster::block_on(instance().enumerate_adapters(wgpu::Backends::PRIMARY));
        let all: Vec<String> = list.iter().map(|adapter| describe(&adapter.get_info())).collect();
        list.retain(|adapter| wanted(&adapter.get_info()));
        list.sort_by_key(|adapter| std::cmp::Reverse(preference(adapter.get_info().device_type)));
        let Some(adapter) = list.first() else {
            let found = if all.is_empty() { "none".into() } else { all.join(", ") };
            return Err(Error::device(format!("wgpu: {none} (adapters found: {found})")));
        };
        let info = adapter.get_info();
        let wanted = std::env::var_os("FLASHRNN_WGPU_MATRIX").is_some_and(|value| value != "0");
        let (matrices, experimental_features) = if wanted && has_matrices(adapter) {
            #[allow(unsafe_code)]
            // SAFETY: the documentation of the variable says that this part of wgpu is
            // experimental.
            (MATRICES, unsafe { wgpu::ExperimentalFeatures::enabled() })
        } else {
            (wgpu::Features::empty(), wgpu::ExperimentalFeatures::disabled())
        };
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("flashrnn"),
            required_limits: adapter.limits(),
            required_features: adapter.features()
                & (wgpu::Features::PIPELINE_CACHE | wgpu::Features::SUBGROUP)
                | matrices,
            experimental_features,
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .map_err(|error| Error::device_because(format!("wgpu: {}", describe(&info)), error))?;
        let failures = Arc::new(Mutex::new(None));
        let kept = failures.clone();
        // Without a handler, wgpu panics.
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            lock(&kept).get_or_insert_with(|| failure(error, 0));
        }));
        let mut device = Device::new(device, queue, describe(&info), failures);
        device.matrices = !matrices.is_empty();
        let lost = device.lost.clone();
        device.handle.set_device_lost_callback(move |reason, message| {
            let why = format!("wgpu: the device is lost: {reason:?} {message}");
            lost.get_or_init(|| Error::device(why.trim_end()));
        });
        Ok(Self::of_device(device))
    }

    fn of_device(device: Device) -> Self {
        let device = Arc::new(device);
        Self {
            kernels: Arc::new(Kernels::new(device.clone())),
            device,
            probes: Arc::default(),
            pools: Arc::default(),
            preferences: Preferences::default(),
        }
    }

    /// Uses the caller's device and queue. wgpu reports errors outside of calls, and the loss of
    /// the device, to the caller; after a loss only downloads fail here.
    ///
    /// Call this once and clone the result: two handles of one device refuse each other's buffers
    /// and weights.
    #[must_use]
    pub fn from_device(device: wgpu::Device, queue: wgpu::Queue) -> Self {
        let name = "the caller's device".into();
        Self::of_device(Device::new(device, queue, name, Arc::default()))
    }

    /// Returns a handle of the same device whose plans use the kernels of `family`.
    #[must_use]
    pub fn with_family(self, family: Family) -> Self {
        Self { preferences: Preferences { family, ..self.preferences }, ..self }
    }

    /// Returns whether the driver runs on the CPU.
    #[must_use]
    pub fn is_cpu(&self) -> bool {
        self.device.handle.adapter_info().device_type == wgpu::DeviceType::Cpu
    }

    /// Returns the wgpu device.
    #[must_use]
    pub fn device(&self) -> &wgpu::Device {
        &self.device.handle
    }

    /// Returns the wgpu queue that everything is enqueued on.
    #[must_use]
    pub fn queue(&self) -> &wgpu::Queue {
        &self.device.queue
    }
}

impl fmt::Debug for Wgpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wgpu")
            .field("device", &self.device.name)
            .field("family", &self.preferences.family)
            .finish_non_exhaustive()
    }
}
