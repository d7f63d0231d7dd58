//! The fused kernels of a plan: one launch a pass, all time steps in it.

use std::sync::Arc;

use flashrnn_core::{Dtype, Result, Shapes};

use crate::call::{Address, ForwardCall};
use crate::device::Device;
use crate::launch::{Kernel, Launch};
use crate::programs::{self, CellSource};
use crate::select::{self, Fused};
use crate::time_loop::{argument, grid};

/// A fused kernel and its launch.
struct Pass {
    kernel: Kernel,
    launch: Launch,
}

/// The fused forward kernels of a problem.
pub(crate) struct FusedForward {
    device: Arc<Device>,
    /// The kernels copy 16 bytes at a time.
    aligned: bool,
    /// Which writes h and the last states only.
    inference: Pass,
    /// Which also writes what a backward pass needs.
    training: Pass,
}

impl FusedForward {
    pub(crate) fn new(
        device: &Arc<Device>,
        cell: &CellSource,
        element: Dtype,
        shapes: &Shapes,
        fused: Fused,
    ) -> Result<Self> {
        let aligned = select::aligned(shapes);
        let pass = |saves: bool| -> Result<Pass> {
            let program = programs::fused_forward(cell, element, shapes, fused, saves, aligned);
            let kernel = device.module(&program)?.kernel("fused_forward")?;
            let launch = Launch {
                shared: fused.forward_shared(shapes, saves) as u32,
                cluster: fused.blocks as u32,
                ..Launch::new(grid(fused.grid(shapes))?, fused.threads() as u32)
            };
            Ok(Pass { kernel, launch })
        };
        let (inference, training) = std::thread::scope(|scope| {
            let inference = scope.spawn(|| pass(false));
            (crate::plan::joined(inference), pass(true))
        });
        Ok(Self { device: device.clone(), aligned, inference: inference?, training: training? })
    }

    /// Whether the kernels can use tensors that begin at these addresses.
    pub(crate) fn can_use(&self, addresses: &[Address]) -> bool {
        !self.aligned || addresses.iter().all(|address| address.is_multiple_of(16))
    }

    /// Enqueues all steps of `call`.
    pub(crate) fn run(&self, mut call: ForwardCall) -> Result<()> {
        let saves = call.states != 0 || call.save_gates != 0 || call.wide_states != 0;
        let Pass { kernel, launch } = if saves { &self.training } else { &self.inference };
        // SAFETY: the kernel takes a ForwardCall.
        unsafe { kernel.launch(self.device.stream.cu_stream(), launch, &mut [argument(&mut call)]) }
    }
}
