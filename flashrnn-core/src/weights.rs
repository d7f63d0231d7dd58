//! Packed weights, and the key that tells whose they are.

use std::fmt;
use std::sync::Arc;

use crate::{Backend, Element, Error, Result};

/// How packed weights are laid out: their sizes, and what the backend's order of them depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightsLayout<O> {
    /// `Gr`
    pub recurrent: usize,
    /// `G`
    pub gates: usize,
    /// `N`
    pub heads: usize,
    /// `D`
    pub head_dim: usize,
    /// [`Backend::PackedOrder`]
    pub order: O,
}

/// R and b, packed by [`Plan::pack`](crate::Plan::pack): usable by every plan of an equal layout,
/// whatever its batch, time, options and number of threads.
pub struct Weights<B: Backend, T: Element> {
    layout: Arc<WeightsLayout<B::PackedOrder>>,
    packed: B::Packed<T>,
}

impl<B: Backend, T: Element> Weights<B, T> {
    /// Joins packed memory with its layout. For backends: the layout must be the one that `packed`
    /// was made with.
    #[must_use]
    pub fn new(layout: Arc<WeightsLayout<B::PackedOrder>>, packed: B::Packed<T>) -> Self {
        Self { layout, packed }
    }

    /// Returns how the weights are laid out.
    #[must_use]
    pub fn layout(&self) -> &WeightsLayout<B::PackedOrder> {
        &self.layout
    }

    /// Returns the backend's packed memory.
    #[must_use]
    pub fn packed(&self) -> &B::Packed<T> {
        &self.packed
    }

    /// Whether the weights are laid out as `wanted`: compared by address first, then field by
    /// field.
    pub(crate) fn has_layout(&self, wanted: &Arc<WeightsLayout<B::PackedOrder>>) -> bool {
        Arc::ptr_eq(&self.layout, wanted) || self.layout == *wanted
    }

    /// Checks that a call of a plan with the layout `wanted` can read these weights.
    ///
    /// # Errors
    /// [`Error::Argument`]
    pub(crate) fn check(&self, wanted: &Arc<WeightsLayout<B::PackedOrder>>) -> Result<()> {
        if self.has_layout(wanted) {
            return Ok(());
        }
        let why = "packed by a plan of other sizes, another device or instruction set; pack them with this plan";
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
