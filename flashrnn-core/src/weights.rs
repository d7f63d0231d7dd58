//! The methods of packed weights.

use std::fmt;
use std::sync::Arc;

use crate::{Backend, Element, Error, Result, Weights, WeightsLayout};

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
