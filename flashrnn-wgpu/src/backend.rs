//! The backend: an adapter's device and queue, opened or the caller's.

use std::fmt;
use std::sync::{Arc, Mutex};

use bytemuck::Pod;
use flashrnn_core::{Backend, Cell, Element, Error, Info, Problem, Result};
use flashrnn_gpu::{DTYPES, Family, lock};

use crate::device::{Device, failure};
use crate::memory::{Buffer, View, ViewMut};
use crate::passes::pack::{Packed, PackedOrder};
use crate::plan::WgpuPlan;
use crate::select::Choice;

/// A device that wgpu found, or the caller's. Clones share it; buffers, packed weights and plans
/// belong to all clones of one.
#[derive(Clone)]
pub struct Wgpu {
    pub(crate) device: Arc<Device>,
    pub(crate) choice: Choice,
}

/// The adapters there are, each by its name, kind, driver's interface and driver.
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

/// What the kernels with cooperative matrices need.
const MATRICES: wgpu::Features = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
    .union(wgpu::Features::SHADER_F16)
    .union(wgpu::Features::SUBGROUP);

/// Whether there are cooperative matrices of 16 x 16, f16 in and f32 out, in subgroups of 32.
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

/// How much a kind of adapter is wanted; the largest first.
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
    /// The first of the best adapters: discrete GPUs, then integrated ones. Drivers that run on the
    /// CPU are taken only where the environment variable `FLASHRNN_WGPU_CPU` is set and not `0`.
    /// With `FLASHRNN_WGPU_MATRIX`, gradients of R in f16 are made by cooperative matrices where
    /// the adapter has them, an experimental part of wgpu.
    ///
    /// Open one and clone it: NVIDIA's driver 580 was seen to hang where threads opened and closed
    /// dozens of devices at a time.
    ///
    /// # Errors
    /// [`Error::Device`] where there is no adapter, or none opens.
    pub fn new() -> Result<Self> {
        let cpu = std::env::var_os("FLASHRNN_WGPU_CPU").is_some_and(|value| value != "0");
        let wanted = |info: &wgpu::AdapterInfo| cpu || info.device_type != wgpu::DeviceType::Cpu;
        Self::open(wanted, "no GPU; FLASHRNN_WGPU_CPU=1 takes drivers that run on the CPU too")
    }

    /// The best of the adapters whose name contains `name`, whatever its kind.
    ///
    /// # Errors
    /// As [`Wgpu::new`].
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
            // SAFETY: whoever set the variable has read that this part of wgpu may have bugs.
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
        // Without a handler wgpu panics.
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            lock(&kept).get_or_insert_with(|| failure(error, 0));
        }));
        let mut device = Device::new(device, queue, describe(&info), failures);
        device.matrices = !matrices.is_empty();
        let lost = device.lost.clone();
        device.device.set_device_lost_callback(move |reason, message| {
            let why = format!("wgpu: the device is lost: {reason:?} {message}");
            lost.get_or_init(|| Error::device(why.trim_end()));
        });
        Ok(Self { device: Arc::new(device), choice: Choice::default() })
    }

    /// Takes the caller's own device and queue. Errors that wgpu reports outside of calls stay the
    /// caller's, and so does the loss of the device: of what it ends, only downloads fail.
    ///
    /// Call it once and clone the result: two handles made of one device refuse each other's
    /// buffers and weights.
    #[must_use]
    pub fn from_device(device: wgpu::Device, queue: wgpu::Queue) -> Self {
        let device =
            Arc::new(Device::new(device, queue, "the caller's device".into(), Arc::default()));
        Self { device, choice: Choice::default() }
    }

    /// The same device and queue, with plans of these kernels.
    #[must_use]
    pub fn with_family(self, family: Family) -> Self {
        Self { choice: Choice { family, ..self.choice }, ..self }
    }

    /// Whether the driver runs on the CPU, so that there is no GPU behind it.
    #[must_use]
    pub fn is_cpu(&self) -> bool {
        self.device.device.adapter_info().device_type == wgpu::DeviceType::Cpu
    }

    /// The wgpu device.
    #[must_use]
    pub fn device(&self) -> &wgpu::Device {
        &self.device.device
    }

    /// The wgpu queue that everything is enqueued on.
    #[must_use]
    pub fn queue(&self) -> &wgpu::Queue {
        &self.device.queue
    }
}

impl fmt::Debug for Wgpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wgpu")
            .field("device", &self.device.name)
            .field("family", &self.choice.family)
            .finish_non_exhaustive()
    }
}

impl Backend for Wgpu {
    type Buffer<P: Pod + Send + Sync> = Buffer<P>;
    type View<'a, P: Pod + Send + Sync> = View<'a, P>;
    type ViewMut<'a, P: Pod + Send + Sync> = ViewMut<'a, P>;
    type Packed<T: Element> = Packed<T>;
    type PackedOrder = PackedOrder;
    type Plan<T: Element, W: Element> = WgpuPlan<T, W>;

    fn info(&self) -> Info {
        Info { name: "wgpu", device: self.device.name.clone(), dtypes: DTYPES.into() }
    }

    flashrnn_gpu::device_methods!();

    /// Gives back the scratch memory that plans which are still there keep, on all clones of this
    /// handle, and waits for all that was enqueued: the driver gets it only then, and may keep some
    /// for itself.
    fn trim(&self) -> Result<()> {
        self.device.trim()
    }

    fn plan<T: Element, W: Element, C: Cell>(
        &self,
        cell: &C,
        problem: &Problem,
    ) -> Result<WgpuPlan<T, W>> {
        WgpuPlan::new(self, cell, problem)
    }
}
