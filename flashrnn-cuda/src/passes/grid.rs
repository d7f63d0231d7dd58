//! The grid kernels of a plan, which run all time steps of a pass in one launch over the whole GPU.

use std::sync::OnceLock;
use std::time::Duration;

use bytemuck::Pod;
use cudarc::driver::sys;
use flashrnn_core::Result;

use crate::call::{Address, BackwardCall, ForwardCall, Watch};
use crate::driver::check;
use crate::kernels::launch::{Kernel, Launch, argument, grid};
use crate::kernels::threads::{join, spawn};
use crate::passes::fused::FusedProblem;
use crate::programs::{self, Features};
use crate::select::grid::{Grid, Pass, THREADS};

/// The grid kernel of a pass.
pub(crate) struct GridPass {
    problem: FusedProblem,
    layout: Grid,
    pass: Pass,
    /// How long a block waits for another; `None` for ever.
    wait_limit: Option<Duration>,
    /// The variants for calls without and with lengths or resets, both compiled by `new`.
    compiled: [OnceLock<(Kernel, Launch)>; 2],
}

impl GridPass {
    /// Compiles both variants, in parallel. Returns `None` if the GPU has no room for all blocks at
    /// the same time.
    pub(crate) fn new(
        problem: FusedProblem,
        layout: Grid,
        pass: Pass,
        wait_limit: Option<Duration>,
    ) -> Result<Option<Self>> {
        problem.kernels.device.watch()?; // allocates, which a call that is captured may not do
        let grid = Self { problem, layout, pass, wait_limit, compiled: Default::default() };
        let blocks = layout.grid(&grid.problem.shapes);
        let rooms = std::thread::scope(|scope| {
            let threads = [false, true].map(|ragged| {
                let grid = &grid;
                spawn(scope, move || {
                    let (kernel, launch) = grid.get(ragged)?;
                    kernel.resident_blocks(launch)
                })
            });
            threads.map(join)
        });
        for room in rooms {
            if room? < blocks {
                return Ok(None);
            }
        }
        Ok(Some(grid))
    }

    /// Returns the bytes of exchanged words that a call needs.
    pub(crate) fn exchange_bytes(&self) -> usize {
        self.layout.exchange_bytes(&self.problem.shapes, self.pass)
    }

    /// Enqueues all steps of a forward pass.
    pub(crate) fn forward(&self, mut call: ForwardCall) -> Result<()> {
        let ragged = call.lengths != 0 || call.resets != 0;
        // SAFETY: the kernel takes (ForwardCall, Watch).
        unsafe { self.run(ragged, call.exchange, &mut call) }
    }

    /// Enqueues all steps of a backward pass.
    pub(crate) fn backward(&self, mut call: BackwardCall) -> Result<()> {
        let ragged = call.lengths != 0 || call.resets != 0;
        // SAFETY: the kernel takes (BackwardCall, Watch).
        unsafe { self.run(ragged, call.exchange, &mut call) }
    }

    fn get(&self, ragged: bool) -> Result<&(Kernel, Launch)> {
        let slot = &self.compiled[usize::from(ragged)];
        if let Some(compiled) = slot.get() {
            return Ok(compiled);
        }
        let FusedProblem { kernels, cell, element, shapes, features, .. } = &self.problem;
        let features = Features { ragged, ..*features };
        let program = programs::grid(cell, *element, shapes, self.layout, self.pass, features);
        let name = match self.pass {
            Pass::Forward => "grid_forward",
            Pass::Backward => "grid_backward",
        };
        let kernel = kernels.module(&program)?.kernel(name)?;
        let launch = Launch {
            shared: self.layout.shared(shapes, self.pass) as u32,
            cluster: self.layout.cluster as u32,
            cooperative: true,
            ..Launch::new(grid(self.layout.grid(shapes))?, THREADS as u32)
        };
        Ok(slot.get_or_init(|| (kernel, launch)))
    }

    /// Clears the words and enqueues a variant of the kernel.
    ///
    /// # Safety
    /// Same as [`Kernel::launch`]. `call` must be the kernel's first argument, and `exchange` must
    /// be its field `exchange`.
    unsafe fn run<Call: Pod>(
        &self,
        ragged: bool,
        exchange: Address,
        call: &mut Call,
    ) -> Result<()> {
        let (kernel, launch) = self.get(ragged)?;
        let device = &self.problem.kernels.device;
        let stream = device.stream.cu_stream();
        // SAFETY: the caller's scratch memory has this many bytes, and nothing else uses it.
        let result = unsafe { sys::cuMemsetD8Async(exchange, 0, self.exchange_bytes(), stream) };
        check(result, "zeroing memory")?;
        let mut watch = Watch {
            limit: self.wait_limit.map_or(0, nanoseconds),
            report: device.watch()?.address(),
            kernel: if self.pass == Pass::Forward { 1 } else { 2 },
            padding: 0,
        };
        // SAFETY: guaranteed by the caller.
        unsafe { kernel.launch(stream, launch, &mut [argument(call), argument(&mut watch)]) }
    }
}

/// Returns a limit for kernels, where 0 would be none.
fn nanoseconds(limit: Duration) -> u64 {
    u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX).max(1)
}
