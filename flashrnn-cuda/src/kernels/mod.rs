//! The store of compiled kernels, and the modules that fill it.
//!
//! The store looks for a program's machine code in memory, then on disk ([`cache`]), and otherwise
//! compiles it with NVRTC ([`compile`]). It loads the code into the device's context (`launch.rs`).

pub mod cache;
pub(crate) mod clusters;
pub mod compile;
pub(crate) mod graph;
pub(crate) mod launch;
pub(crate) mod threads;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use flashrnn_core::Result;
use flashrnn_gpu::disk_cache::Key;
use flashrnn_gpu::lock;

use crate::device::Device;
use crate::kernels::compile::{Nvrtc, Program};
use crate::kernels::launch::Module;

/// Holds the kernels loaded in a context, for one of the context's streams.
pub(crate) struct Kernels {
    /// Shared with the context's other streams.
    modules: Arc<Modules>,
    pub(crate) device: Arc<Device>,
}

/// The loaded modules by the key of their program. An entry stays locked while its module is made,
/// so that no two threads make the same one.
type Modules = Mutex<HashMap<Key, Arc<Mutex<Option<Arc<Module>>>>>>;

impl Kernels {
    /// Creates an empty store.
    pub(crate) fn new(device: Arc<Device>) -> Self {
        Self { modules: Arc::default(), device }
    }

    /// Creates a store for another stream of the same context, which shares the loaded modules.
    pub(crate) fn for_device(&self, device: Arc<Device>) -> Self {
        Self { modules: self.modules.clone(), device }
    }

    /// Returns the module of `program`, compiling and loading it first if necessary. If several
    /// threads ask for the same program, one makes the module and the others wait.
    pub(crate) fn module(&self, program: &Program) -> Result<Arc<Module>> {
        let context = &self.device.context;
        let key = cache::key(program, context.arch, Nvrtc::get()?);
        let slot = lock(&self.modules).entry(key).or_default().clone();
        let mut slot = lock(&slot);
        if let Some(module) = &*slot {
            return Ok(module.clone());
        }
        let cubin = cache::cubin(program, context.arch)?;
        let module = Arc::new(Module::load(context, &cubin, &program.name)?);
        *slot = Some(module.clone());
        Ok(module)
    }

    /// Counts the loaded modules.
    pub(crate) fn loaded(&self) -> usize {
        let slots: Vec<_> = lock(&self.modules).values().cloned().collect();
        slots.iter().filter(|slot| lock(slot).is_some()).count()
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        // The last store unloads the modules, so each store first waits for the kernels on its
        // stream. A failed device has nothing to wait for.
        let _ = self.device.wait();
    }
}
