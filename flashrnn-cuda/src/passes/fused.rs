//! The fused kernels of a plan, which run all time steps of a pass in one launch.

use std::sync::{Arc, OnceLock};

use flashrnn_core::{Dtype, Result, Shapes};

use crate::call::{Address, BackwardCall, ForwardCall, Gates};
use crate::kernels::Kernels;
use crate::kernels::launch::{Kernel, Launch, argument, grid};
use crate::kernels::threads::{join, spawn};
use crate::programs::{self, CellSource, Features};
use crate::select::alignment::COPY_BYTES;
use crate::select::fused::Fused;
use crate::select::grid::Pass;

/// The properties of a problem that the fused kernels of both passes are compiled for.
#[derive(Clone)]
pub(crate) struct FusedProblem {
    pub kernels: Arc<Kernels>,
    pub cell: CellSource,
    pub element: Dtype,
    /// Bytes per element.
    pub bytes: usize,
    pub shapes: Shapes,
    /// The features that every call needs.
    pub features: Features,
}

/// The fused kernels of the forward pass.
pub(crate) struct FusedForward(Variants);

impl FusedForward {
    /// Compiles the variants for calls with aligned tensors.
    pub(crate) fn new(problem: FusedProblem, layout: Fused) -> Result<Self> {
        let variants = Variants::new(problem, layout, Pass::Forward);
        variants.compile_aligned(&[true, false])?;
        Ok(Self(variants))
    }

    /// Enqueues all steps of `call`.
    pub(crate) fn run(&self, mut call: ForwardCall) -> Result<()> {
        let saved = if call.save_gates != 0 { call.gates } else { Gates { external: 0, inner: 0 } };
        let tensors = [call.wx, call.h, call.states];
        let variant = Variant {
            saves: call.states != 0 || call.save_gates != 0 || call.wide_states != 0,
            ragged: call.lengths != 0 || call.resets != 0,
            copy_bytes: self.0.copy_bytes(&tensors, &[call.wide_states, call.wide_gates], saved),
        };
        // SAFETY: the kernel takes a ForwardCall.
        unsafe { self.0.run(variant, &mut call) }
    }
}

/// The fused kernels of the backward pass.
pub(crate) struct FusedBackward(Variants);

impl FusedBackward {
    /// Compiles the variants for calls with aligned tensors.
    pub(crate) fn new(problem: FusedProblem, layout: Fused) -> Result<Self> {
        let variants = Variants::new(problem, layout, Pass::Backward);
        variants.compile_aligned(&[true])?;
        Ok(Self(variants))
    }

    /// Enqueues all steps of `call`.
    pub(crate) fn run(&self, mut call: BackwardCall) -> Result<()> {
        let tensors = [call.states, call.d_states, call.d_gates.external, call.d_gates.inner];
        let wide = [call.wide_states, call.wide_gates];
        let variant = Variant {
            saves: true,
            ragged: call.lengths != 0 || call.resets != 0,
            copy_bytes: self.0.copy_bytes(&tensors, &wide, call.gates),
        };
        // SAFETY: the kernel takes a BackwardCall.
        unsafe { self.0.run(variant, &mut call) }
    }
}

/// The features that vary between calls.
#[derive(Clone, Copy, PartialEq)]
struct Variant {
    /// Whether the forward pass writes what the backward pass reads. Always `true` in the backward
    /// pass.
    saves: bool,
    /// Whether the call has lengths or resets.
    ragged: bool,
    /// The largest of [`COPY_BYTES`] that divides all addresses.
    copy_bytes: usize,
}

impl Variant {
    /// Number of variants.
    const COUNT: usize = 4 * COPY_BYTES.len();

    fn index(self) -> usize {
        let copy = COPY_BYTES.iter().position(|&bytes| bytes == self.copy_bytes);
        copy.unwrap_or(0) * 4 + usize::from(self.saves) * 2 + usize::from(self.ragged)
    }
}

/// The variants of a pass's kernel, each compiled at its first use.
struct Variants {
    problem: FusedProblem,
    layout: Fused,
    pass: Pass,
    compiled: [OnceLock<(Kernel, Launch)>; Variant::COUNT],
}

impl Variants {
    fn new(problem: FusedProblem, layout: Fused, pass: Pass) -> Self {
        Self { problem, layout, pass, compiled: Default::default() }
    }

    /// Compiles, in parallel, the variants for tensors at multiples of 16 bytes, one for each value
    /// of [`Variant::saves`] in `saves`.
    fn compile_aligned(&self, saves: &[bool]) -> Result<()> {
        let copy_bytes = self.copy_bytes(&[], &[], Gates { external: 0, inner: 0 });
        std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for &saves in saves {
                for ragged in [false, true] {
                    let variant = Variant { saves, ragged, copy_bytes };
                    threads.push(spawn(scope, move || self.get(variant).map(drop)));
                }
            }
            threads.into_iter().try_for_each(join)
        })
    }

    fn get(&self, variant: Variant) -> Result<&(Kernel, Launch)> {
        let slot = &self.compiled[variant.index()];
        if let Some(compiled) = slot.get() {
            return Ok(compiled);
        }
        let Variant { saves, ragged, copy_bytes } = variant;
        let FusedProblem { kernels, cell, element, bytes, shapes, features } = &self.problem;
        let features = Features { saves, ragged, copy_bytes: Some(copy_bytes), ..*features };
        let layout = self.layout;
        let (program, name, shared) = match self.pass {
            Pass::Forward => (
                programs::fused_forward(cell, *element, shapes, layout, features),
                "fused_forward",
                layout.forward_shared(shapes, *bytes, saves),
            ),
            Pass::Backward => (
                programs::fused_backward(cell, *element, shapes, layout, features),
                "fused_backward",
                layout.backward_shared(shapes, *bytes),
            ),
        };
        let kernel = kernels.module(&program)?.kernel(name)?;
        let launch = Launch {
            shared: shared as u32,
            cluster: layout.blocks as u32,
            ..Launch::new(grid(layout.grid(shapes))?, layout.threads() as u32)
        };
        Ok(slot.get_or_init(|| (kernel, launch)))
    }

    /// Returns the largest of [`COPY_BYTES`] that divides the address of every row. `tensors` have
    /// rows of D elements of `T`. `wide` tensors have rows of D elements of f32, and interleaved
    /// gates have rows of D vectors; both are copied in words that are larger by the same factor as
    /// their elements.
    fn copy_bytes(&self, tensors: &[Address], wide: &[Address], saved: Gates) -> usize {
        let FusedProblem { bytes: element_bytes, shapes, features, .. } = &self.problem;
        let row = (shapes.head_dim * element_bytes) as Address;
        let divides = |bytes: usize, address: &Address| address.is_multiple_of(bytes as Address);
        let fits = |bytes: &usize| {
            let gates_fit = if features.interleaved {
                *bytes == 1 || divides((bytes * shapes.gates).min(16), &saved.external)
            } else {
                divides(*bytes, &saved.external) && divides(*bytes, &saved.inner)
            };
            let wide_bytes = (bytes * size_of::<f32>() / element_bytes).min(16);
            divides(*bytes, &row)
                && tensors.iter().all(|address| divides(*bytes, address))
                && wide.iter().all(|address| divides(wide_bytes, address))
                && gates_fit
        };
        COPY_BYTES.into_iter().find(fits).unwrap_or(1)
    }

    /// Enqueues a variant of the kernel.
    ///
    /// # Safety
    /// Same as [`Kernel::launch`]. `call` must be the kernel's only argument.
    unsafe fn run<Call>(&self, variant: Variant, call: &mut Call) -> Result<()> {
        let (kernel, launch) = self.get(variant)?;
        let stream = self.problem.kernels.device.stream.cu_stream();
        // SAFETY: guaranteed by the caller.
        unsafe { kernel.launch(stream, launch, &mut [argument(call)]) }
    }
}
