//! The native module of the Python package `flashrnn_rs`.
//!
//! It makes plans from names and sizes, and runs them on memory given by address. The Python files
//! in `python/flashrnn_rs` allocate that memory, with NumPy or PyTorch, and are its only callers.
//! Planning, packing and the passes release the interpreter's lock; only opening a device holds it.

mod devices;
mod error;
mod memory;
mod plan;
mod problem;
mod relu;

use std::mem::ManuallyDrop;
use std::process;

use pyo3::prelude::*;

use crate::error::exception;
use crate::memory::Memory;
use crate::plan::{AnyPlan, AnyWeights, BackwardMemory, ForwardMemory, StepMemory};
use crate::problem::{CELLS, Description, SavedPerUnit, Sizes, with_cell, with_elements};

#[pymodule]
mod _native {
    #[pymodule_export]
    const VERSION: &str = env!("CARGO_PKG_VERSION");
    #[pymodule_export]
    use super::{Plan, Weights, cells, saved_per_unit};
}

/// Owns a value of the process that made it. A forked child never drops it, because the device or
/// the threads that it belongs to are its parent's.
struct OfProcess<T> {
    value: ManuallyDrop<T>,
    process: u32,
}

impl<T> OfProcess<T> {
    fn new(value: T) -> Self {
        Self { value: ManuallyDrop::new(value), process: process::id() }
    }
}

impl<T> Drop for OfProcess<T> {
    fn drop(&mut self) {
        if self.process == process::id() {
            // SAFETY: the value is not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.value) };
        }
    }
}

/// A problem prepared to run on a device.
#[pyclass(frozen)]
struct Plan(OfProcess<Box<dyn AnyPlan>>);

/// Weights packed by a plan.
#[pyclass(frozen)]
struct Weights(OfProcess<AnyWeights>);

impl Plan {
    fn any(&self) -> &dyn AnyPlan {
        &**self.0.value
    }
}

#[pymethods]
impl Plan {
    /// Makes a plan on the CPU. 0 threads stand for the default number.
    #[staticmethod]
    fn cpu(py: Python<'_>, description: Description, threads: usize) -> PyResult<Self> {
        let backend = devices::cpu(threads).map_err(exception)?;
        let plan = py.detach(|| plan::make(&backend, &description)).map_err(exception)?;
        Ok(Self(OfProcess::new(plan)))
    }

    /// Makes a plan on the GPU `ordinal` whose work is enqueued on the raw handle `stream`.
    #[staticmethod]
    fn cuda(
        py: Python<'_>,
        description: Description,
        ordinal: usize,
        stream: usize,
    ) -> PyResult<Self> {
        // SAFETY: the Python files pass PyTorch's current stream. PyTorch never destroys its own.
        let backend = unsafe { devices::cuda(ordinal, stream) }.map_err(exception)?;
        let plan = py.detach(|| plan::make(&backend, &description)).map_err(exception)?;
        Ok(Self(OfProcess::new(plan)))
    }

    /// The bytes of scratch memory of the forward and of the backward pass.
    #[getter]
    fn workspaces(&self) -> [usize; 2] {
        self.any().workspaces().map(|workspace| workspace.bytes)
    }

    /// The bytes of the memory of packed weights, 0 if the plan packs into memory of its own.
    #[getter]
    fn packed_bytes(&self) -> usize {
        self.any().packed_bytes()
    }

    /// Packs `r` and `b` into `memory`, or into memory of its own.
    #[pyo3(signature = (r, b, memory=None))]
    fn pack(
        &self,
        py: Python<'_>,
        r: Memory,
        b: Memory,
        memory: Option<Memory>,
    ) -> PyResult<Weights> {
        // SAFETY: the Python files pass tensors of the plan's device and types, here and below.
        // They keep `memory` as long as the weights.
        let packed = py.detach(|| unsafe { self.any().pack(r, b, memory) }).map_err(exception)?;
        Ok(Weights(OfProcess::new(packed)))
    }

    /// Returns the weights that the plan of another stream has packed into `memory`.
    fn packed(&self, memory: Memory) -> PyResult<Weights> {
        // SAFETY: see `pack`. The Python files pass memory packed by a plan for the same problem.
        let packed = unsafe { self.any().packed(memory) }.map_err(exception)?;
        Ok(Weights(OfProcess::new(packed)))
    }

    /// Runs the forward pass.
    #[pyo3(signature = (weights, *, wx, s0=None, lengths=None, resets=None, h=None, states=None,
        last=None, saved=None, workspace=None))]
    #[allow(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn forward(
        &self,
        py: Python<'_>,
        weights: &Weights,
        wx: Memory,
        s0: Option<Memory>,
        lengths: Option<Memory>,
        resets: Option<Memory>,
        h: Option<Memory>,
        states: Option<Memory>,
        last: Option<Memory>,
        saved: Option<[Memory; 2]>,
        workspace: Option<Memory>,
    ) -> PyResult<()> {
        let memory = ForwardMemory { wx, s0, lengths, resets, h, states, last, saved, workspace };
        let weights = &weights.0.value;
        // SAFETY: see `pack`.
        py.detach(|| unsafe { self.any().forward(weights, memory) }).map_err(exception)
    }

    /// Runs the backward pass.
    #[pyo3(signature = (weights, *, states, saved, d_wx, wx=None, s0=None, lengths=None,
        resets=None, d_h=None, d_states=None, d_last=None, d_r=None, d_b=None, d_s0=None,
        workspace=None))]
    #[allow(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn backward(
        &self,
        py: Python<'_>,
        weights: &Weights,
        states: Memory,
        saved: [Memory; 2],
        d_wx: Memory,
        wx: Option<Memory>,
        s0: Option<Memory>,
        lengths: Option<Memory>,
        resets: Option<Memory>,
        d_h: Option<Memory>,
        d_states: Option<Memory>,
        d_last: Option<Memory>,
        d_r: Option<Memory>,
        d_b: Option<Memory>,
        d_s0: Option<Memory>,
        workspace: Option<Memory>,
    ) -> PyResult<()> {
        let memory = BackwardMemory {
            states,
            saved,
            wx,
            s0,
            lengths,
            resets,
            d_h,
            d_states,
            d_last,
            d_wx,
            d_r,
            d_b,
            d_s0,
            workspace,
        };
        let weights = &weights.0.value;
        // SAFETY: see `pack`.
        py.detach(|| unsafe { self.any().backward(weights, memory) }).map_err(exception)
    }

    /// Advances `state` by one step, in place.
    #[pyo3(signature = (weights, *, wx, state, h=None))]
    fn step(
        &self,
        py: Python<'_>,
        weights: &Weights,
        wx: Memory,
        state: Memory,
        h: Option<Memory>,
    ) -> PyResult<()> {
        let weights = &weights.0.value;
        // SAFETY: see `pack`.
        let step = || unsafe { self.any().step(weights, StepMemory { wx, state, h }) };
        py.detach(step).map_err(exception)
    }
}

/// Returns, for each cell, its name, S, G, Gr and Gx.
#[pyfunction]
fn cells() -> PyResult<Vec<(&'static str, [usize; 4])>> {
    let sizes = |name| Ok((name, with_cell(name, Sizes)?));
    CELLS.into_iter().map(sizes).collect::<flashrnn_core::Result<_>>().map_err(exception)
}

/// Returns how many elements per unit and step a forward pass saves, in `gates` and in `wide`.
#[pyfunction]
fn saved_per_unit(cell: &str, dtype: &str, save: &str) -> PyResult<[usize; 2]> {
    let work = problem::save(save).map(|save| SavedPerUnit { cell, save });
    work.and_then(|work| with_elements(dtype, dtype, work)).map_err(exception)
}
