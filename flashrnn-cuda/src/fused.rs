//! The fused kernels of a plan: one launch a pass, all time steps in it.

use std::sync::Arc;

use flashrnn_core::{Dtype, Result, Shapes};

use crate::call::{Address, BackwardCall, ForwardCall};
use crate::device::Device;
use crate::engine::{joined, spawn};
use crate::launch::{Kernel, Launch};
use crate::programs::{self, CellSource, Uses};
use crate::spread::{self, Fused};
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
    /// Where h and the last states are all that is written; without and with lengths or resets.
    inference: [Pass; 2],
    /// Where also what a backward pass needs is.
    training: [Pass; 2],
}

impl FusedForward {
    pub(crate) fn new(
        device: &Arc<Device>,
        cell: &CellSource,
        (element, bytes): (Dtype, usize),
        shapes: &Shapes,
        fused: Fused,
        uses: Uses,
    ) -> Result<Self> {
        let pass = |saves, ragged| -> Result<Pass> {
            let uses = Uses { saves, ragged, ..uses };
            let program = programs::fused_forward(cell, element, shapes, fused, uses);
            let kernel = device.module(&program)?.kernel("fused_forward")?;
            let launch = Launch {
                shared: fused.forward_shared(shapes, bytes, saves) as u32,
                cluster: fused.blocks as u32,
                ..Launch::new(grid(fused.grid(shapes))?, fused.threads() as u32)
            };
            Ok(Pass { kernel, launch })
        };
        let (inference, training) = std::thread::scope(|scope| {
            let training = spawn(scope, || at_once(|ragged| pass(true, ragged)));
            (at_once(|ragged| pass(false, ragged)), joined(training))
        });
        Ok(Self {
            device: device.clone(),
            aligned: spread::aligned(shapes, bytes),
            inference: inference?,
            training: training?,
        })
    }

    /// Whether the kernels can use the tensors of `call`.
    pub(crate) fn can_run(&self, call: &ForwardCall) -> bool {
        let gates = [call.gates.external, call.gates.inner];
        !self.aligned || lie_aligned(&[&[call.wx, call.h, call.states][..], &gates].concat())
    }

    /// Enqueues all steps of `call`.
    pub(crate) fn run(&self, mut call: ForwardCall) -> Result<()> {
        let saves = call.states != 0 || call.save_gates != 0 || call.wide_states != 0;
        let passes = if saves { &self.training } else { &self.inference };
        let Pass { kernel, launch } = &passes[usize::from(call.lengths != 0 || call.resets != 0)];
        // SAFETY: the kernel takes a ForwardCall.
        unsafe { kernel.launch(self.device.stream.cu_stream(), launch, &mut [argument(&mut call)]) }
    }
}

/// The fused backward kernels of a problem.
pub(crate) struct FusedBackward {
    device: Arc<Device>,
    /// The kernels copy 16 bytes at a time.
    aligned: bool,
    /// Without and with lengths or resets.
    passes: [Pass; 2],
}

impl FusedBackward {
    pub(crate) fn new(
        device: &Arc<Device>,
        cell: &CellSource,
        (element, bytes): (Dtype, usize),
        shapes: &Shapes,
        fused: Fused,
        uses: Uses,
    ) -> Result<Self> {
        let passes = at_once(|ragged| -> Result<Pass> {
            let uses = Uses { saves: true, ragged, ..uses };
            let program = programs::fused_backward(cell, element, shapes, fused, uses);
            let kernel = device.module(&program)?.kernel("fused_backward")?;
            let launch = Launch {
                shared: fused.backward_shared(shapes, bytes) as u32,
                cluster: fused.blocks as u32,
                ..Launch::new(grid(fused.grid(shapes))?, fused.threads() as u32)
            };
            Ok(Pass { kernel, launch })
        });
        Ok(Self { device: device.clone(), aligned: spread::aligned(shapes, bytes), passes: passes? })
    }

    /// Whether the kernels can use the tensors of `call`.
    pub(crate) fn can_run(&self, call: &BackwardCall) -> bool {
        let gates = [call.gates.external, call.gates.inner, call.d_gates.external, call.d_gates.inner];
        let others = [call.states, call.d_states, call.wide_states, call.wide_gates];
        !self.aligned || lie_aligned(&[gates, others].concat())
    }

    /// Enqueues all steps of `call`.
    pub(crate) fn run(&self, mut call: BackwardCall) -> Result<()> {
        let Pass { kernel, launch } = &self.passes[usize::from(call.lengths != 0 || call.resets != 0)];
        // SAFETY: the kernel takes a BackwardCall.
        unsafe { kernel.launch(self.device.stream.cu_stream(), launch, &mut [argument(&mut call)]) }
    }
}

/// `[pass(false), pass(true)]`, which compile at the same time.
fn at_once(pass: impl Fn(bool) -> Result<Pass> + Sync) -> Result<[Pass; 2]> {
    std::thread::scope(|scope| {
        let with = spawn(scope, || pass(true));
        let without = pass(false);
        Ok([without?, joined(with)?])
    })
}

fn lie_aligned(addresses: &[Address]) -> bool {
    addresses.iter().all(|address| address.is_multiple_of(16))
}
