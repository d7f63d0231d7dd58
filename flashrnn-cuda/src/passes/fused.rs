//! The fused kernels of a plan: one launch per pass, all time steps in it.

use std::sync::{Arc, OnceLock};

use flashrnn_core::{Dtype, Result, Shapes};

use crate::call::{Address, BackwardCall, ForwardCall};
use crate::device::Device;
use crate::engine::{joined, spawn};
use crate::kernels::launch::{Kernel, Launch};
use crate::passes::time_loop::{argument, grid};
use crate::programs::{self, CellSource, Uses};
use crate::select::fused::{COPY_BYTES, Fused};

/// A fused kernel and its launch.
struct Pass {
    kernel: Kernel,
    launch: Launch,
}

/// Which version of a kernel a call needs.
#[derive(Clone, Copy, PartialEq)]
struct Version {
    /// Forward: it writes what a backward pass needs.
    saves: bool,
    /// There are lengths or resets.
    ragged: bool,
    /// One of [`COPY_BYTES`], which divides all addresses.
    copy_bytes: usize,
}

impl Version {
    /// Number of versions, and this one's index among them.
    const COUNT: usize = 4 * COPY_BYTES.len();

    fn index(self) -> usize {
        let copy = COPY_BYTES.iter().position(|&bytes| bytes == self.copy_bytes);
        copy.unwrap_or(0) * 4 + usize::from(self.saves) * 2 + usize::from(self.ragged)
    }
}

/// The versions of a kernel, each compiled when it is first needed.
struct Versions {
    device: Arc<Device>,
    cell: CellSource,
    element: Dtype,
    bytes: usize,
    shapes: Shapes,
    fused: Fused,
    uses: Uses,
    backward: bool,
    passes: [OnceLock<Pass>; Version::COUNT],
}

impl Versions {
    /// Compiles those of `wanted` at the same time.
    fn compile(&self, wanted: &[Version]) -> Result<()> {
        std::thread::scope(|scope| {
            let compile = |&version| spawn(scope, move || self.get(version).map(drop));
            let threads: Vec<_> = wanted.iter().map(compile).collect();
            threads.into_iter().try_for_each(joined)
        })
    }

    fn get(&self, version: Version) -> Result<&Pass> {
        let place = &self.passes[version.index()];
        if let Some(pass) = place.get() {
            return Ok(pass);
        }
        let Version { saves, ragged, copy_bytes } = version;
        let uses = Uses { saves, ragged, copy_bytes: Some(copy_bytes), ..self.uses };
        let Self { cell, element, shapes, fused, bytes, .. } = self;
        let (program, name, shared) = if self.backward {
            let program = programs::fused_backward(cell, *element, shapes, *fused, uses);
            (program, "fused_backward", fused.backward_shared(shapes, *bytes))
        } else {
            let program = programs::fused_forward(cell, *element, shapes, *fused, uses);
            (program, "fused_forward", fused.forward_shared(shapes, *bytes, saves))
        };
        let kernel = self.device.module(&program)?.kernel(name)?;
        let launch = Launch {
            shared: shared as u32,
            cluster: fused.blocks as u32,
            ..Launch::new(grid(fused.grid(shapes))?, fused.threads() as u32)
        };
        Ok(place.get_or_init(|| Pass { kernel, launch }))
    }

    /// The most bytes of [`COPY_BYTES`] that divide the address of every row of `tensors`; rows of
    /// the f32 tensors `wide`, which have as many elements, are copied as much wider as these are,
    /// and so are interleaved gates.
    fn copy_bytes(&self, tensors: &[Address], wide: &[Address], interleaved: Address) -> usize {
        let row = (self.shapes.head_dim * self.bytes) as Address;
        let divides = |bytes: usize, address: &Address| address.is_multiple_of(bytes as Address);
        let fits = |bytes: &usize| {
            divides(*bytes, &row)
                && tensors.iter().all(|address| divides(*bytes, address))
                && wide.iter().all(|address| {
                    divides((bytes * size_of::<f32>() / self.bytes).min(16), address)
                })
                && (*bytes == 1 || divides((bytes * self.shapes.gates).min(16), &interleaved))
        };
        COPY_BYTES.into_iter().find(fits).unwrap_or(1)
    }

    /// Enqueues a version of the kernel.
    ///
    /// # Safety
    /// As [`Kernel::launch`]; `call` is the kernel's only argument.
    unsafe fn run<Call>(&self, version: Version, call: &mut Call) -> Result<()> {
        let Pass { kernel, launch } = self.get(version)?;
        // SAFETY: the caller's promise.
        unsafe { kernel.launch(self.device.stream.cu_stream(), launch, &mut [argument(call)]) }
    }
}

/// The problem of the fused kernels of a plan.
pub(crate) struct FusedProblem<'a> {
    pub device: &'a Arc<Device>,
    pub cell: &'a CellSource,
    pub element: Dtype,
    /// Bytes of an element.
    pub bytes: usize,
    pub shapes: &'a Shapes,
    pub uses: Uses,
}

impl FusedProblem<'_> {
    /// The versions of one pass's kernel, of which those that write and read tensors at multiples
    /// of 16 bytes are compiled.
    fn versions(&self, fused: Fused, backward: bool) -> Result<Versions> {
        let versions = Versions {
            device: self.device.clone(),
            cell: self.cell.clone(),
            element: self.element,
            bytes: self.bytes,
            shapes: self.shapes.clone(),
            fused,
            uses: self.uses,
            backward,
            passes: Default::default(),
        };
        let copy_bytes = versions.copy_bytes(&[], &[], 0);
        let mut wanted = Vec::new();
        for saves in [true, false] {
            for ragged in [false, true] {
                wanted.push(Version { saves, ragged, copy_bytes });
            }
        }
        // The backward pass writes nothing for another.
        wanted.retain(|version| version.saves || !backward);
        versions.compile(&wanted)?;
        Ok(versions)
    }
}

/// The fused forward kernels of a problem.
pub(crate) struct FusedForward(Versions);

impl FusedForward {
    pub(crate) fn new(problem: &FusedProblem<'_>, fused: Fused) -> Result<Self> {
        problem.versions(fused, false).map(Self)
    }

    /// Enqueues all steps of `call`.
    pub(crate) fn run(&self, mut call: ForwardCall) -> Result<()> {
        let saved = [call.gates.external, call.gates.inner]
            .map(|gates| gates * Address::from(call.save_gates != 0));
        let interleaved = self.0.uses.interleaved;
        let gates = if interleaved { [0; 2] } else { saved };
        let tensors = [&[call.wx, call.h, call.states][..], &gates].concat();
        let version = Version {
            saves: call.states != 0 || call.save_gates != 0 || call.wide_states != 0,
            ragged: call.lengths != 0 || call.resets != 0,
            copy_bytes: self.0.copy_bytes(
                &tensors,
                &[call.wide_states, call.wide_gates],
                saved[0] * Address::from(interleaved),
            ),
        };
        // SAFETY: the kernel takes a ForwardCall.
        unsafe { self.0.run(version, &mut call) }
    }
}

/// The fused backward kernels of a problem.
pub(crate) struct FusedBackward(Versions);

impl FusedBackward {
    pub(crate) fn new(problem: &FusedProblem<'_>, fused: Fused) -> Result<Self> {
        problem.versions(fused, true).map(Self)
    }

    /// Enqueues all steps of `call`.
    pub(crate) fn run(&self, mut call: BackwardCall) -> Result<()> {
        let saved = [call.gates.external, call.gates.inner];
        let interleaved = self.0.uses.interleaved;
        let gates = if interleaved { [0; 2] } else { saved };
        let d_gates = [call.d_gates.external, call.d_gates.inner];
        let tensors = [&[call.states, call.d_states][..], &gates, &d_gates].concat();
        let version = Version {
            saves: true,
            ragged: call.lengths != 0 || call.resets != 0,
            copy_bytes: self.0.copy_bytes(
                &tensors,
                &[call.wide_states, call.wide_gates],
                saved[0] * Address::from(interleaved),
            ),
        };
        // SAFETY: the kernel takes a BackwardCall.
        unsafe { self.0.run(version, &mut call) }
    }
}
