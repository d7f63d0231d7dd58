//! Packed weights: R and b in the order in which the kernels read them.

use std::fmt;
use std::sync::Arc;

use flashrnn_core::{Element, WeightsLayout};

use crate::device::StreamId;
use crate::memory::Buffer;
use crate::passes::Common;

/// Holds R rounded to `T`, in the orders of both passes, and b in f32.
pub struct Packed<T: Element> {
    /// `[Gr, N, D_out, depth]`
    pub(crate) forward: Buffer<T>,
    /// `[N, D_in, Gr, depth]`
    pub(crate) backward: Buffer<T>,
    /// `[G, N, D]`
    pub(crate) b: Buffer<f32>,
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
        f.debug_struct("Packed")
            .field("forward", &self.forward)
            .field("b", &self.b)
            .finish_non_exhaustive()
    }
}

/// Returns the layout of the weights that a plan packs and accepts.
pub(crate) fn layout(common: &Common) -> Arc<WeightsLayout<PackedOrder>> {
    let order = PackedOrder { depth: common.depth, stream: common.device.stream_id() };
    Arc::new(common.shapes.weights_layout(order))
}
