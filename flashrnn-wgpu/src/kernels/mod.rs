//! The kernels that are compiled on a device, and their uniform buffers.

pub mod cache;
mod pipeline;
pub(crate) mod recorder;
mod uniforms;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use flashrnn_core::{Error, Result};
use flashrnn_gpu::lock;

use self::cache::Cache;
pub(crate) use self::pipeline::Kernel;
use self::uniforms::Uniforms;
use crate::device::Device;
use crate::programs::Program;

/// The kernels of a device, compiled once for all plans.
pub(crate) struct Kernels {
    pub device: Arc<Device>,
    /// The compiled kernels by entry point and text.
    compiled: Mutex<HashMap<String, Arc<Kernel>>>,
    uniforms: Uniforms,
    /// Pipelines on disk; opened with the first kernel.
    cache: OnceLock<Option<Cache>>,
}

impl Kernels {
    pub fn new(device: Arc<Device>) -> Self {
        let uniforms = Uniforms::new(&device);
        Self { device, compiled: Mutex::default(), uniforms, cache: OnceLock::new() }
    }

    /// Returns an entry point of a program. The first call compiles it.
    ///
    /// # Errors
    /// [`Error::Compile`] if the driver refuses the program.
    pub fn get(&self, program: &Program, name: &'static str) -> Result<Arc<Kernel>> {
        let key = format!("// {name}\n{}", program.source);
        if let Some(kernel) = lock(&self.compiled).get(&key) {
            return Ok(kernel.clone());
        }
        let kernel = self
            .device
            .scope(0, || {
                let cache = self.cache.get_or_init(|| Cache::new(&self.device));
                Ok(Kernel::compile(&self.device, cache.as_ref(), program, name))
            })
            .map_err(|why| match why {
                Error::Device(why) if self.device.lost.get().is_none() => {
                    Error::Compile { kernel: name.into(), log: why.to_string() }
                }
                other => other,
            })?;
        Ok(lock(&self.compiled).entry(key).or_insert(Arc::new(kernel)).clone())
    }

    /// Writes to disk the pipelines that were compiled since the last call.
    pub fn save_pipelines(&self) {
        if let Some(Some(cache)) = self.cache.get() {
            cache.save();
        }
    }

    /// Drops the cached arguments of kernels.
    pub fn trim(&self) {
        self.uniforms.trim();
    }
}
