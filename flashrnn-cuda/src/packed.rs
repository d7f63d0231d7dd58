//! Packed weights: R and b in the order in which the kernels read them.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use flashrnn_core::{Element, Result, Shapes, WeightsLayout, Workspace};

use crate::call::Address;
use crate::device::StreamId;
use crate::memory::ViewMut;
use crate::memory::scratch::{self, Bump, Scratch};
use crate::passes::Common;

/// Holds R rounded to `T`, in the orders of both passes, and b in f32. The memory is a buffer of
/// its own, or the caller's.
pub struct Packed<T: Element> {
    memory: Scratch<PackedBuffers>,
    element: PhantomData<T>,
}

/// The addresses of the parts of packed weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackedBuffers {
    /// `[Gr, N, D_out, depth]`
    pub forward: Address,
    /// `[N, D_in, Gr, depth]`
    pub backward: Address,
    /// `[G, N, D]`
    pub b: Address,
}

impl PackedBuffers {
    fn cut<T>(common: &Common, bump: &mut Bump) -> Self {
        let shapes = &common.shapes;
        let r = shapes.recurrent * shapes.heads * shapes.head_dim * common.depth;
        Self {
            forward: bump.take::<T>(r),
            backward: bump.take::<T>(r),
            b: bump.take::<f32>(shapes.b().iter().product()),
        }
    }
}

impl<T: Element> Packed<T> {
    /// Divides `memory`, or a new buffer, into the parts of packed weights.
    ///
    /// # Errors
    /// [`Error::Shape`](flashrnn_core::Error::Shape) if `memory` is too small,
    /// [`Error::Argument`](flashrnn_core::Error::Argument) if it is not aligned,
    /// [`Error::OutOfMemory`](flashrnn_core::Error::OutOfMemory) if the GPU has too little memory.
    pub(crate) fn new(common: &Common, memory: Option<&ViewMut<'_, u8>>) -> Result<Self> {
        if let Some(memory) = memory {
            let Workspace { bytes, .. } = Self::workspace(common);
            Shapes::check("memory", memory.len().min(bytes), &[bytes])?;
        }
        let layout = |bump: &mut Bump| PackedBuffers::cut::<T>(common, bump);
        let memory = Scratch::new(&common.device, memory, layout)?;
        Ok(Self { memory, element: PhantomData })
    }

    /// Returns the size and alignment of the memory of packed weights.
    pub(crate) fn workspace(common: &Common) -> Workspace {
        scratch::workspace(|bump| PackedBuffers::cut::<T>(common, bump))
    }

    /// Returns the addresses of the parts.
    pub(crate) fn buffers(&self) -> PackedBuffers {
        self.memory.buffers
    }
}

/// Identifies the order of packed weights and the stream that their memory belongs to. The order
/// depends on the padding of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedOrder {
    depth: usize,
    stream: StreamId,
}

impl<T: Element> fmt::Debug for Packed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packed").field("buffers", &self.buffers()).finish_non_exhaustive()
    }
}

/// Returns the layout of the weights that a plan packs and accepts.
pub(crate) fn layout(common: &Common) -> Arc<WeightsLayout<PackedOrder>> {
    let order = PackedOrder { depth: common.depth, stream: common.device.stream_id() };
    Arc::new(common.shapes.weights_layout(order))
}
