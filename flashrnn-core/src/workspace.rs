//! What a backend reports about itself, its views and its scratch memory.

use crate::Dtype;

/// Reports the number of elements in a view.
pub trait Len {
    /// Returns the number of elements.
    fn len(&self) -> usize;
    /// Returns whether the view is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<P> Len for &[P] {
    fn len(&self) -> usize {
        <[P]>::len(self)
    }
}

impl<P> Len for &mut [P] {
    fn len(&self) -> usize {
        <[P]>::len(self)
    }
}

/// Describes a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// The backend's name: `cpu`, `cuda`, `wgpu`.
    pub name: &'static str,
    /// The name of the device it runs on, for display.
    pub device: String,
    /// The supported element types `T`.
    pub dtypes: Vec<Dtype>,
}

/// Describes the scratch memory of a pass, whose contents are meaningless after the call. A call
/// allocates no scratch memory if it is passed a workspace; otherwise it takes some from a pool of
/// the backend or the plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workspace {
    /// The size in bytes; 0 where the pass needs none.
    pub bytes: usize,
    /// The alignment of the address in bytes, a power of two.
    pub align: usize,
}

impl Workspace {
    /// The workspace of a pass that needs no scratch memory.
    pub const NONE: Self = Self { bytes: 0, align: 1 };
}
