//! The time loop of a pass with one launch per step, recorded in a CUDA graph of many steps.
//!
//! The kernels read their arguments and their first step from a table in device memory, so one
//! graph works for any buffers and any number of steps. `begin` writes the table. Each launch of
//! the graph runs [`GRAPH_STEPS`] steps and advances the table. Steps beyond the last do nothing.
//!
//! All graphs of a stream share one table, since calls on a stream run one after the other. A call
//! that the caller captures in a graph of its own may run beside later calls. It launches its steps
//! one by one, with a table in its own scratch memory, and so do short calls.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use bytemuck::Pod;
use cudarc::driver::sys::CUstream;
use flashrnn_core::Result;
use flashrnn_gpu::lock;

use crate::call::Address;
use crate::device::Device;
use crate::kernels::Kernels;
use crate::kernels::compile::Program;
use crate::kernels::graph::Graph;
use crate::kernels::launch::{Kernel, Launch, argument, grid};
use crate::memory::Buffer;

/// Steps per graph. Advancing the table costs about as much as a step.
const GRAPH_STEPS: usize = 128;

/// Calls with fewer steps launch them one by one, because the graph's empty steps would cost more.
const MIN_GRAPH_CALL: usize = 24;

/// Size of a table in bytes, enough for the arguments of either pass.
pub(crate) const TABLE_BYTES: usize = 4096;

/// The time loop of one pass (forward or backward). It works for all problems that differ only in
/// T, in buffers, and in options other than `tf32`.
pub(crate) struct TimeLoop {
    /// First, so that the graph is destroyed before the modules of its kernels are unloaded.
    graph: OnceLock<Graph>,
    device: Arc<Device>,
    begin: Kernel,
    step: Kernel,
    advance: Kernel,
    launch: Launch,
    table: Arc<Table>,
}

/// The table of a stream's graphs, allocated for the first of them and kept as long as the stream's
/// handles and plans.
#[derive(Default)]
struct Table {
    memory: OnceLock<Buffer<u8>>,
    /// Locked while a call is enqueued, because only one call at a time may use the table.
    enqueuing: Mutex<()>,
}

impl Table {
    /// Returns the address, allocating the memory if necessary. Must not be called while the stream
    /// is captured, because a captured allocation belongs to the caller's graph.
    fn address(&self, device: &Arc<Device>) -> Result<Address> {
        if let Some(memory) = self.memory.get() {
            return Ok(memory.ptr());
        }
        let made = device.alloc(TABLE_BYTES)?;
        // If another thread was faster, its memory is kept and this is freed.
        Ok(self.memory.get_or_init(|| made).ptr())
    }
}

impl TimeLoop {
    /// Compiles `program`, whose kernels are `{pass}_begin`, `{pass}_step` and `{pass}_advance`. A
    /// step runs `blocks` blocks of `warps` warps.
    fn new(
        kernels: &Kernels,
        program: &Program,
        pass: &str,
        blocks: usize,
        warps: usize,
        table: &Arc<Table>,
    ) -> Result<Self> {
        let module = kernels.module(program)?;
        let kernel = |part: &str| module.kernel(&format!("{pass}_{part}"));
        Ok(Self {
            begin: kernel("begin")?,
            step: kernel("step")?,
            advance: kernel("advance")?,
            launch: Launch::new(grid(blocks)?, 32 * warps as u32),
            table: table.clone(),
            graph: OnceLock::new(),
            device: kernels.device.clone(),
        })
    }

    /// Enqueues `begin` with at least `threads` threads, then `steps` steps of `call`. `table` is
    /// scratch memory of the call, of [`TABLE_BYTES`] bytes.
    pub(crate) fn run<Call: Pod>(
        &self,
        call: &Call,
        threads: usize,
        steps: usize,
        table: Address,
    ) -> Result<()> {
        let stream = self.device.stream.cu_stream();
        if steps < MIN_GRAPH_CALL || self.device.is_capturing()? {
            self.begin(call, threads, table)?;
            for offset in 0..steps {
                // The first step must not start early, because it reads the table, which `begin`
                // writes, before it waits.
                self.step(stream, table, offset, offset > 0)?;
            }
            return Ok(());
        }
        let table = self.table.address(&self.device)?;
        let graph = match self.graph.get() {
            Some(graph) => graph,
            None => {
                let graph = self.record(table)?;
                self.graph.get_or_init(|| graph)
            }
        };
        let _enqueuing = lock(&self.table.enqueuing);
        self.begin(call, threads, table)?;
        for _ in 0..steps.div_ceil(GRAPH_STEPS) {
            graph.launch(stream)?;
        }
        Ok(())
    }

    /// Enqueues `begin`, which writes `call` to `table`.
    fn begin<Call: Pod>(&self, call: &Call, threads: usize, table: Address) -> Result<()> {
        const { assert!(size_of::<Call>() <= TABLE_BYTES) };
        let (mut call, mut table) = (*call, table);
        let stream = self.device.stream.cu_stream();
        let launch = Launch::new(grid(threads.div_ceil(256).max(1))?, 256);
        // SAFETY: `begin` takes (Call, Call*), and the table has room for a Call.
        unsafe {
            self.begin.launch(stream, &launch, &mut [argument(&mut call), argument(&mut table)])
        }
    }

    fn record(&self, table: Address) -> Result<Graph> {
        Graph::record(&self.device, |stream| {
            for offset in 0..GRAPH_STEPS {
                self.step(stream, table, offset, offset > 0)?;
            }
            let (mut table, mut steps) = (table, GRAPH_STEPS as i32);
            let launch = Launch::new([1, 1, 1], 1);
            // SAFETY: `advance` takes (Call*, int).
            unsafe {
                self.advance.launch(
                    stream,
                    &launch,
                    &mut [argument(&mut table), argument(&mut steps)],
                )
            }
        })
    }

    fn step(&self, stream: CUstream, table: Address, offset: usize, early: bool) -> Result<()> {
        let (mut table, mut offset) = (table, offset as i32);
        let launch = Launch { early, ..self.launch };
        // SAFETY: a step takes (const Call*, int). The addresses in the table are from the call of
        // `run`, whose buffers are valid until it has run.
        unsafe {
            self.step.launch(stream, &launch, &mut [argument(&mut table), argument(&mut offset)])
        }
    }
}

/// The most recently used time loops of a stream. They are kept so that a plan that differs only in
/// T, for example, needs no new graph.
#[derive(Default)]
pub(crate) struct TimeLoops {
    entries: Mutex<Vec<Entry>>,
    table: Arc<Table>,
}

struct Entry {
    program: Program,
    blocks: usize,
    time_loop: Arc<TimeLoop>,
}

/// Maximum number of time loops that are kept.
const MAX_KEPT: usize = 32;

impl TimeLoops {
    /// Returns the time loop of `program` whose steps run `blocks` blocks of `warps` warps,
    /// creating it if necessary.
    pub(crate) fn get(
        &self,
        kernels: &Kernels,
        program: &Program,
        pass: &str,
        blocks: usize,
        warps: usize,
    ) -> Result<Arc<TimeLoop>> {
        let find = |entries: &mut Vec<Entry>| {
            let at = entries.iter().position(|e| e.blocks == blocks && e.program == *program)?;
            let entry = entries.remove(at);
            let time_loop = entry.time_loop.clone();
            entries.push(entry);
            Some(time_loop)
        };
        if let Some(time_loop) = find(&mut self.entries()) {
            return Ok(time_loop);
        }
        // Compile without the lock, so that other threads need not wait.
        let made = TimeLoop::new(kernels, program, pass, blocks, warps, &self.table)?;
        let time_loop = Arc::new(made);
        let mut entries = self.entries();
        if let Some(made_meanwhile) = find(&mut entries) {
            return Ok(made_meanwhile);
        }
        if entries.len() == MAX_KEPT {
            entries.remove(0);
        }
        entries.push(Entry { program: program.clone(), blocks, time_loop: time_loop.clone() });
        Ok(time_loop)
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        lock(&self.entries)
    }
}
