//! The time loop of a pass: a kernel a step, many steps in a CUDA graph.
//!
//! The kernels read their arguments and the step they begin at from a table in device memory, so
//! that a graph serves any buffers and any number of steps: `begin` writes the table, each launch
//! of the graph runs [`STEPS`] steps and moves the table on, and steps beyond the last do nothing.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, OnceLock};

use bytemuck::Pod;
use flashrnn_core::{Error, Result};
use flashrnn_gpu::lock;

use crate::device::Device;
use crate::kernels::compile::Program;
use crate::kernels::launch::{Graph, Kernel, Launch};
use crate::memory::Buffer;

/// The steps of a graph. Moving the table on costs about a step.
const STEPS: usize = 128;

/// Below this, the steps are launched one by one: a launch costs more than a step that does
/// nothing.
const FEW: usize = 24;

/// One pass (forward or backward) of problems that differ in T, options and buffers only.
pub(crate) struct TimeLoop {
    device: Arc<Device>,
    begin: Kernel,
    step: Kernel,
    advance: Kernel,
    launch: Launch,
    table: Buffer<u8>,
    graph: OnceLock<Graph>,
    /// Held while a call is enqueued: calls share the table, one after the other in the stream.
    enqueuing: Mutex<()>,
}

impl TimeLoop {
    /// Compiles `program`, whose kernels are `{pass}_begin`, `{pass}_step` and `{pass}_advance`,
    /// for steps of `blocks` blocks.
    fn new(
        device: &Arc<Device>,
        program: &Program,
        pass: &str,
        blocks: usize,
        warps: usize,
    ) -> Result<Self> {
        let module = device.module(program)?;
        let kernel = |part: &str| module.kernel(&format!("{pass}_{part}"));
        Ok(Self {
            begin: kernel("begin")?,
            step: kernel("step")?,
            advance: kernel("advance")?,
            launch: Launch::new(grid(blocks)?, 32 * warps as u32),
            table: device.alloc(4096)?,
            graph: OnceLock::new(),
            enqueuing: Mutex::new(()),
            device: device.clone(),
        })
    }

    /// Enqueues a call: `begin` with `threads` threads, then `steps` steps.
    pub(crate) fn run<Call: Pod>(&self, call: &Call, threads: usize, steps: usize) -> Result<()> {
        debug_assert!(size_of::<Call>() <= self.table.len());
        let stream = self.device.stream.cu_stream();
        let mut call = *call;
        let mut table = self.table.ptr();
        let _enqueuing = lock(&self.enqueuing);
        let launch = Launch::new(grid(threads.div_ceil(256).max(1))?, 256);
        // SAFETY: begin takes (Call, Call*); the table holds a Call.
        unsafe {
            self.begin.launch(stream, &launch, &mut [argument(&mut call), argument(&mut table)])?
        };
        if steps < FEW {
            for offset in 0..steps {
                // The first step reads what `begin` wrote before it would wait.
                self.step(stream, offset, offset > 0)?;
            }
            return Ok(());
        }
        let graph = match self.graph.get() {
            Some(graph) => graph,
            None => {
                let graph = self.record()?;
                self.graph.get_or_init(|| graph)
            }
        };
        for _ in 0..steps.div_ceil(STEPS) {
            graph.launch(stream)?;
        }
        Ok(())
    }

    fn record(&self) -> Result<Graph> {
        Graph::record(&self.device, |stream| {
            for offset in 0..STEPS {
                self.step(stream, offset, offset > 0)?;
            }
            let (mut table, mut steps) = (self.table.ptr(), STEPS as i32);
            let launch = Launch::new([1, 1, 1], 1);
            // SAFETY: advance takes (Call*, int).
            unsafe {
                self.advance.launch(
                    stream,
                    &launch,
                    &mut [argument(&mut table), argument(&mut steps)],
                )
            }
        })
    }

    fn step(
        &self,
        stream: cudarc::driver::sys::CUstream,
        offset: usize,
        early: bool,
    ) -> Result<()> {
        let (mut table, mut offset) = (self.table.ptr(), offset as i32);
        let launch = Launch { early, ..self.launch };
        // SAFETY: a step takes (const Call*, int), and finds every other address in the table.
        unsafe {
            self.step.launch(stream, &launch, &mut [argument(&mut table), argument(&mut offset)])
        }
    }
}

/// A kernel argument's address.
pub(crate) fn argument<P>(value: &mut P) -> *mut c_void {
    std::ptr::from_mut(value).cast()
}

/// A grid of so many blocks.
pub(crate) fn grid(blocks: usize) -> Result<[u32; 3]> {
    match u32::try_from(blocks) {
        Ok(blocks) if blocks <= i32::MAX as u32 => Ok([blocks, 1, 1]),
        _ => Err(Error::Unsupported {
            backend: "cuda",
            what: format!("a step of {blocks} blocks"),
            why: "a grid has at most 2147483647".into(),
        }),
    }
}

/// The time loops made last, kept so that a plan that differs in T alone, say, needs no new graph.
#[derive(Default)]
pub(crate) struct TimeLoops(Mutex<Vec<Entry>>);

struct Entry {
    program: Program,
    blocks: usize,
    time_loop: Arc<TimeLoop>,
}

/// How many are kept.
const KEPT: usize = 32;

impl TimeLoops {
    /// The time loop of `program` for steps of `blocks` blocks, made unless there is one.
    pub(crate) fn get(
        &self,
        device: &Arc<Device>,
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
        // Compiled without the lock: others may go on meanwhile.
        let time_loop = Arc::new(TimeLoop::new(device, program, pass, blocks, warps)?);
        let mut entries = self.entries();
        if let Some(made_meanwhile) = find(&mut entries) {
            return Ok(made_meanwhile);
        }
        if entries.len() == KEPT {
            entries.remove(0);
        }
        entries.push(Entry { program: program.clone(), blocks, time_loop: time_loop.clone() });
        Ok(time_loop)
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, Vec<Entry>> {
        lock(&self.0)
    }
}
