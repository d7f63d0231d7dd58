//! The fused kernels of a plan: one launch a pass, all time steps in it.

use std::sync::Arc;

use flashrnn_core::{Dtype, Result, Shapes};

use crate::call::{Address, BackwardCall, ForwardCall};
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
                ..Launch::new(grid(fused.grid(shapes))?, fused.forward_threads() as u32)
            };
            Ok(Pass { kernel, launch })
        };
        let (inference, training) = std::thread::scope(|scope| {
            let inference = scope.spawn(|| pass(false));
            let training = pass(true);
            (crate::plan::joined(inference), training)
        });
        Ok(Self { device: device.clone(), aligned, inference: inference?, training: training? })
    }

    /// Whether the kernels can use the tensors of `call`.
    pub(crate) fn can_run(&self, call: &ForwardCall) -> bool {
        let gates = [call.gates.external, call.gates.inner];
        !self.aligned || lie_aligned(&[&[call.wx, call.h, call.states][..], &gates].concat())
    }

    /// Enqueues all steps of `call`.
    pub(crate) fn run(&self, mut call: ForwardCall) -> Result<()> {
        let saves = call.states != 0 || call.save_gates != 0 || call.wide_states != 0;
        let Pass { kernel, launch } = if saves { &self.training } else { &self.inference };
        // SAFETY: the kernel takes a ForwardCall.
        unsafe { kernel.launch(self.device.stream.cu_stream(), launch, &mut [argument(&mut call)]) }
    }
}

/// The fused backward kernel of a problem.
pub(crate) struct FusedBackward {
    device: Arc<Device>,
    /// The kernel copies 16 bytes at a time.
    aligned: bool,
    pass: Pass,
}

impl FusedBackward {
    pub(crate) fn new(
        device: &Arc<Device>,
        cell: &CellSource,
        element: Dtype,
        shapes: &Shapes,
        fused: Fused,
    ) -> Result<Self> {
        let aligned = select::aligned(shapes);
        let program = programs::fused_backward(cell, element, shapes, fused, aligned);
        let kernel = device.module(&program)?.kernel("fused_backward")?;
        let launch = Launch {
            shared: fused.backward_shared(shapes) as u32,
            cluster: fused.blocks as u32,
            ..Launch::new(grid(fused.grid(shapes))?, fused.backward_threads() as u32)
        };
        Ok(Self { device: device.clone(), aligned, pass: Pass { kernel, launch } })
    }

    /// Whether the kernel can use the tensors of `call`.
    pub(crate) fn can_run(&self, call: &BackwardCall) -> bool {
        let gates = [call.gates.external, call.gates.inner, call.d_gates.external, call.d_gates.inner];
        let others = [call.states, call.d_states, call.wide_states, call.wide_gates];
        !self.aligned || lie_aligned(&[gates, others].concat())
    }

    /// Enqueues all steps of `call`.
    pub(crate) fn run(&self, mut call: BackwardCall) -> Result<()> {
        let Pass { kernel, launch } = &self.pass;
        // SAFETY: the kernel takes a BackwardCall.
        unsafe { kernel.launch(self.device.stream.cu_stream(), launch, &mut [argument(&mut call)]) }
    }
}

fn lie_aligned(addresses: &[Address]) -> bool {
    addresses.iter().all(|address| address.is_multiple_of(16))
}
