//! Implements the traits of the public interface, and checks the tensors of every call.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use bytemuck::Pod;
use flashrnn_core::{
    Backend, Backward, Cell, Element, Forward, Info, Plan, Problem, Result, Saved, Shapes, Step,
    Weights, WeightsLayout, Workspace,
};
use flashrnn_gpu::{DTYPES, KernelChoice, check_dtypes};

use crate::backend::Cuda;
use crate::engine::Engine;
use crate::memory::{Buffer, View, ViewMut};
use crate::packed::{Packed, PackedOrder};
use crate::passes::{Common, pack};
use crate::programs::CellSource;
use crate::select::choice;

impl Backend for Cuda {
    type Buffer<P: Pod + Send + Sync> = Buffer<P>;
    type View<'a, P: Pod + Send + Sync> = View<'a, P>;
    type ViewMut<'a, P: Pod + Send + Sync> = ViewMut<'a, P>;
    type Packed<T: Element> = Packed<T>;
    type PackedOrder = PackedOrder;
    type Plan<T: Element, W: Element> = CudaPlan<T, W>;

    fn info(&self) -> Info {
        let device = format!("{}, {}", self.name(), self.arch());
        Info { name: "cuda", device, dtypes: DTYPES.into() }
    }

    flashrnn_gpu::device_methods!();

    fn trim(&self) -> Result<()> {
        self.device.trim()
    }

    fn plan<T: Element, W: Element, C: Cell>(
        &self,
        cell: &C,
        problem: &Problem,
    ) -> Result<CudaPlan<T, W>> {
        let shapes = problem.shapes::<C>()?;
        check_dtypes::<T, W>("cuda")?;
        let _entered = self.device.enter()?;
        let engine = Engine::new::<T, W>(self, &CellSource::new(cell), problem, &shapes)?;
        Ok(CudaPlan { cuda: self.clone(), engine, weights: PhantomData })
    }
}

/// Checks that the device may use each of these optional tensors of a call.
macro_rules! check_device {
    ($device:expr, $call:expr, $($tensor:ident),*) => {
        $(if let Some(view) = &$call.$tensor {
            view.check(stringify!($tensor), $device)?;
        })*
    };
}

/// Runs one problem on a GPU, with the kernels chosen and compiled for it.
pub struct CudaPlan<T: Element, W: Element> {
    /// Dropped before `engine`. If this is the last handle of the stream, dropping it waits for the
    /// stream, so no kernel of `engine` is running when its module is unloaded.
    cuda: Cuda,
    engine: Engine,
    weights: PhantomData<fn() -> (T, W)>,
}

impl<T: Element, W: Element> CudaPlan<T, W> {
    /// Returns the backend that made this plan.
    #[must_use]
    pub fn backend(&self) -> &Cuda {
        &self.cuda
    }

    /// Returns the size and alignment of the memory of packed weights, for
    /// [`CudaPlan::pack_into`].
    #[must_use]
    pub fn packed_workspace(&self) -> Workspace {
        Packed::<T>::workspace(&self.engine.common)
    }

    /// Packs R and b as [`Plan::pack`] does, into `memory` instead of a new buffer.
    ///
    /// # Safety
    /// `memory` must stay valid, and nothing else may write to it, as long as the weights are used,
    /// including the work that uses them. If it is a view made by [`ViewMut::from_raw`], what that
    /// function requires must hold for this long.
    ///
    /// # Errors
    /// The same as [`Plan::pack`], [`Error::Shape`](flashrnn_core::Error::Shape) if `memory` is
    /// smaller than [`CudaPlan::packed_workspace`], [`Error::Argument`](flashrnn_core::Error) if it
    /// is not aligned.
    pub unsafe fn pack_into(
        &self,
        r: View<'_, W>,
        b: View<'_, W>,
        memory: ViewMut<'_, u8>,
    ) -> Result<Weights<Cuda, T>> {
        self.pack_in(r, b, Some(memory))
    }

    /// Returns the weights that another plan has packed into `memory`, for example a plan of
    /// another stream. That plan's `weights_layout` must have differed in nothing but the stream.
    ///
    /// # Safety
    /// What [`CudaPlan::pack_into`] requires of `memory`, for these weights too. Work of this plan
    /// must be ordered behind the packing by the caller.
    ///
    /// # Errors
    /// The same as [`CudaPlan::pack_into`].
    pub unsafe fn packed_in(&self, memory: ViewMut<'_, u8>) -> Result<Weights<Cuda, T>> {
        let Engine { common, layout, .. } = &self.engine;
        memory.check("memory", &common.device)?;
        Ok(Weights::new(layout.clone(), Packed::new(common, Some(&memory))?))
    }

    fn pack_in(
        &self,
        r: View<'_, W>,
        b: View<'_, W>,
        memory: Option<ViewMut<'_, u8>>,
    ) -> Result<Weights<Cuda, T>> {
        let Engine { common, layout, pack: kernel, .. } = &self.engine;
        Shapes::check("r", r.len(), &common.shapes.r())?;
        Shapes::check("b", b.len(), &common.shapes.b())?;
        let device = &common.device;
        r.check("r", device)?;
        b.check("b", device)?;
        if let Some(memory) = &memory {
            memory.check("memory", device)?;
        }
        let _entered = device.begin_call()?;
        let packed = Packed::new(common, memory.as_ref())?;
        pack::pack(common, kernel, [r.ptr(), b.ptr()], packed.buffers())?;
        Ok(Weights::new(layout.clone(), packed))
    }

    /// Describes the kernels of the forward and the backward pass.
    #[must_use]
    pub fn kernels(&self) -> [KernelChoice; 2] {
        let Common { shapes, bytes, .. } = &self.engine.common;
        choice::describe(shapes, *bytes, self.cuda.gpu(), self.cuda.family)
    }
}

impl<T: Element, W: Element> fmt::Debug for CudaPlan<T, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaPlan")
            .field("cuda", &self.cuda)
            .field("problem", &self.engine.common.problem)
            .field("tensors", &T::DTYPE)
            .field("weights", &W::DTYPE)
            .field("kernels", &self.kernels().each_ref().map(ToString::to_string))
            .finish_non_exhaustive()
    }
}

impl<T: Element, W: Element> Plan<T, W> for CudaPlan<T, W> {
    type Backend = Cuda;

    fn problem(&self) -> &Problem {
        &self.engine.common.problem
    }

    fn shapes(&self) -> &Shapes {
        &self.engine.common.shapes
    }

    fn weights_layout(&self) -> &Arc<WeightsLayout<PackedOrder>> {
        &self.engine.layout
    }

    fn pack(&self, r: View<'_, W>, b: View<'_, W>) -> Result<Weights<Cuda, T>> {
        self.pack_in(r, b, None)
    }

    fn saved(&self) -> Result<Saved<Cuda, T>> {
        Saved::new(&self.cuda, &self.engine.common.shapes, self.engine.common.problem.options.save)
    }

    fn forward_workspace(&self) -> Workspace {
        self.engine.forward.workspace(&self.engine.common)
    }

    fn backward_workspace(&self) -> Workspace {
        self.engine.backward.workspace(&self.engine.common)
    }

    fn forward(&self, call: Forward<'_, Cuda, T>) -> Result<()> {
        call.check::<W>(self)?;
        let device = &self.engine.common.device;
        call.wx.check("wx", device)?;
        check_device!(device, call, s0, lengths, resets, h, states, last, workspace);
        if let Some(saved) = &call.saved {
            saved.gates.check("saved", device)?;
            saved.wide.check("saved", device)?;
        }
        let _entered = device.begin_call()?;
        self.engine.forward.run(&self.engine.common, call)
    }

    fn backward(&self, call: Backward<'_, Cuda, T, W>) -> Result<()> {
        call.check(self)?;
        let device = &self.engine.common.device;
        call.states.check("states", device)?;
        call.saved.gates.check("saved", device)?;
        call.saved.wide.check("saved", device)?;
        call.d_wx.check("d_wx", device)?;
        check_device!(
            device, call, wx, s0, lengths, resets, d_h, d_states, d_last, d_r, d_b, d_s0, workspace
        );
        let _entered = device.begin_call()?;
        self.engine.backward.run(&self.engine.common, call)
    }

    fn step(&self, call: Step<'_, Cuda, T>) -> Result<()> {
        call.check::<W>(self)?;
        let device = &self.engine.common.device;
        call.wx.check("wx", device)?;
        call.state.check("state", device)?;
        check_device!(device, call, h);
        let _entered = device.begin_call()?;
        self.engine.forward.step(&self.engine.common, call)
    }
}
