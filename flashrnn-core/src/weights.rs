//! Packed weights, and the layout that decides which plans accept them.

use std::fmt;
use std::sync::Arc;

use crate::{Backend, Element, Error, Result};

/// Describes the layout of packed weights: their sizes, and the order of their elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightsLayout<O> {
    /// `Gr`, the number of gates with recurrent input.
    pub recurrent: usize,
    /// `G`, the number of gates.
    pub gates: usize,
    /// `N`, the number of heads.
    pub heads: usize,
    /// `D`, the number of units per head.
    pub head_dim: usize,
    /// The backend's [`PackedOrder`](Backend::PackedOrder).
    pub order: O,
}

/// Holds R and b, packed by [`Plan::pack`](crate::Plan::pack). Every plan with an equal layout
/// accepts them, whatever its batch, time, options and number of threads.
pub struct Weights<B: Backend, T: Element> {
    layout: Arc<WeightsLayout<B::PackedOrder>>,
    packed: B::Packed<T>,
}

impl<B: Backend, T: Element> Weights<B, T> {
    /// Joins packed memory with its layout. For backends, which must pass the layout that `packed`
    /// was made with.
    #[must_use]
    pub fn new(layout: Arc<WeightsLayout<B::PackedOrder>>, packed: B::Packed<T>) -> Self {
        Self { layout, packed }
    }

    /// Returns the layout of the weights.
    #[must_use]
    pub fn layout(&self) -> &WeightsLayout<B::PackedOrder> {
        &self.layout
    }

    /// Returns the backend's packed memory.
    #[must_use]
    pub fn packed(&self) -> &B::Packed<T> {
        &self.packed
    }

    /// Returns whether the layout equals `wanted`. Compares addresses first, then fields.
    pub(crate) fn has_layout(&self, wanted: &Arc<WeightsLayout<B::PackedOrder>>) -> bool {
        Arc::ptr_eq(&self.layout, wanted) || self.layout == *wanted
    }

    /// Checks that a plan with the layout `wanted` can read these weights.
    ///
    /// # Errors
    /// [`Error::Argument`] if the layouts differ.
    pub(crate) fn check(&self, wanted: &Arc<WeightsLayout<B::PackedOrder>>) -> Result<()> {
        if self.has_layout(wanted) {
            return Ok(());
        }
        let why = "packed for other sizes, another device or another instruction set; \
                   pack them with this plan";
        Err(Error::Argument { tensor: "weights", why })
    }
}

impl<B: Backend, T: Element> fmt::Debug for Weights<B, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Weights")
            .field("dtype", &T::DTYPE)
            .field("layout", &self.layout)
            .finish_non_exhaustive()
    }
}
