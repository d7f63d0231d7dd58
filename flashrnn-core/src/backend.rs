//! The traits a backend implements: memory, and plans that run the recurrence.

use std::fmt::Debug;
use std::sync::Arc;

use bytemuck::Pod;

use crate::{
    Backward, Cell, Dtype, Element, Error, Forward, Problem, Result, Saved, Shapes, Step, Weights,
    WeightsLayout,
};

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

/// A device that runs recurrences, with its memory.
///
/// The interface is the whole recurrence, not single operations. `plan` is its only generic entry
/// point: there a CPU monomorphises the cell, and a GPU traces, prints and compiles it. Whatever a
/// backend does not support, it reports as [`Error::Unsupported`] from `plan`, never from a later
/// call.
pub trait Backend: Clone + Send + Sync + 'static {
    /// Owned memory for elements of `P`.
    type Buffer<P: Pod + Send + Sync>: Send + Sync;
    /// A borrowed part of a buffer, or of memory owned by someone else.
    type View<'a, P: Pod + Send + Sync>: Copy + Send + Len;
    /// A mutably borrowed part of a buffer, or of memory owned by someone else.
    type ViewMut<'a, P: Pod + Send + Sync>: Send + Len;
    /// R and b in the order this backend's kernels read them, for tensors of `T`. Only
    /// [`Plan::pack`] makes one in safe code, and it cannot be copied.
    type Packed<T: Element>: Send + Sync;
    /// Everything that order depends on besides `Gr`, `G`, `N` and `D`, such as the widths of
    /// vectors and tiles, and the device. It never depends on the batch, the time, a cell's own
    /// numbers or the number of threads.
    type PackedOrder: Clone + Debug + Eq + Send + Sync + 'static;
    /// A problem prepared to run with tensors of `T` and weights of `W`.
    type Plan<T: Element, W: Element>: Plan<T, W, Backend = Self>;

    /// Returns the name, the device and the supported element types.
    fn info(&self) -> Info;

    /// Returns whether calls reject lengths outside 0 to T with [`Error::Value`]. Backends whose
    /// lengths are in device memory clamp them in their kernels instead.
    fn checks_lengths(&self) -> bool {
        true
    }

    /// Allocates a zeroed buffer of `len` elements.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]
    fn alloc<P: Pod + Send + Sync>(&self, len: usize) -> Result<Self::Buffer<P>>;

    /// Allocates a buffer and copies `data` into it.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]
    fn upload<P: Pod + Send + Sync>(&self, data: &[P]) -> Result<Self::Buffer<P>>;

    /// Copies `view` to host memory after waiting for everything enqueued before.
    ///
    /// # Errors
    /// [`Error::Device`]
    fn download<P: Pod + Send + Sync>(&self, view: Self::View<'_, P>) -> Result<Vec<P>>;

    /// Waits until everything enqueued has run.
    ///
    /// # Errors
    /// [`Error::Device`] with the first failure among the enqueued work.
    fn synchronize(&self) -> Result<()>;

    /// Returns memory to the system that is cached for later calls and not in use.
    ///
    /// # Errors
    /// [`Error::Device`]
    fn trim(&self) -> Result<()>;

    /// Borrows the whole buffer for reading.
    fn view<'a, P: Pod + Send + Sync>(&self, buffer: &'a Self::Buffer<P>) -> Self::View<'a, P>;

    /// Borrows the whole buffer for writing.
    fn view_mut<'a, P: Pod + Send + Sync>(
        &self,
        buffer: &'a mut Self::Buffer<P>,
    ) -> Self::ViewMut<'a, P>;

    /// Prepares `problem` with `cell` to run on tensors of `T` and weights of `W`. `W` is `T`, or
    /// f32 with 16-bit tensors. Both are inferred from the tensors passed to the plan's calls
    /// (beware that unsuffixed literals are f64), or named as in `plan::<f32, f32, _>(…)`.
    ///
    /// # Errors
    /// [`Error::InvalidProblem`] if the problem is invalid, [`Error::Unsupported`] if this backend
    /// does not support it, [`Error::Compile`] if a kernel fails to compile.
    fn plan<T: Element, W: Element, C: Cell>(
        &self,
        cell: &C,
        problem: &Problem,
    ) -> Result<Self::Plan<T, W>>;
}

/// A problem prepared to run.
///
/// Methods only enqueue work. A plan holds no data of its calls, so several of them may run at
/// once, and two forward passes may precede one backward pass.
pub trait Plan<T: Element, W: Element>: Send + Sync {
    /// The backend this plan runs on.
    type Backend: Backend;
    /// Returns the problem passed to `plan`.
    fn problem(&self) -> &Problem;

    /// Returns the sizes, and with them the shape of every tensor.
    fn shapes(&self) -> &Shapes;

    /// Returns the layout of this plan's packed weights. Every call compares it with the layout of
    /// the weights it is passed.
    fn weights_layout(&self) -> &Arc<WeightsLayout<<Self::Backend as Backend>::PackedOrder>>;

    /// Returns whether this plan's calls accept `weights`, as they do if the plan that packed them
    /// has an equal layout.
    fn accepts(&self, weights: &Weights<Self::Backend, T>) -> bool {
        weights.has_layout(self.weights_layout())
    }

    /// Packs `r [Gr, N, D_out, D_in]` and `b [G, N, D]` for any number of calls of this plan, and
    /// of every other plan that [accepts](Plan::accepts) the result.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::OutOfMemory`]
    fn pack(
        &self,
        r: <Self::Backend as Backend>::View<'_, W>,
        b: <Self::Backend as Backend>::View<'_, W>,
    ) -> Result<Weights<Self::Backend, T>>;

    /// Allocates memory for what the forward pass saves for the backward pass. Callers that bring
    /// their own memory find its sizes in [`Shapes::saved`].
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]
    fn saved(&self) -> Result<Saved<Self::Backend, T>>;

    /// Returns the size and alignment of the scratch memory that [`Plan::forward`] needs.
    fn forward_workspace(&self) -> Workspace;

    /// Returns the size and alignment of the scratch memory that [`Plan::backward`] needs.
    fn backward_workspace(&self) -> Workspace;

    /// Runs the recurrence over all time steps.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::Value`] for tensors that don't fit the problem,
    /// [`Error::Argument`] for weights that this plan does not [accept](Plan::accepts) and for
    /// memory of another device.
    fn forward(&self, call: Forward<'_, Self::Backend, T>) -> Result<()>;

    /// Computes the gradients by backpropagation through time.
    ///
    /// # Errors
    /// Those of [`Plan::forward`], and [`Error::Argument`] if a tensor is missing.
    fn backward(&self, call: Backward<'_, Self::Backend, T, W>) -> Result<()>;

    /// Advances a state by one time step without allocating. Ignores the problem's T and direction.
    ///
    /// # Errors
    /// Those of [`Plan::forward`].
    fn step(&self, call: Step<'_, Self::Backend, T>) -> Result<()>;
}

/// Describes the scratch memory of a pass, whose contents are meaningless after the call. A call
/// that is passed a workspace allocates nothing; one that is not takes memory from a pool of the
/// backend or the plan.
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

/// Checks lengths in host memory.
///
/// # Errors
/// [`Error::Value`] if one is negative or above `time`.
pub fn check_lengths(lengths: &[i32], time: usize) -> Result<()> {
    match lengths.iter().position(|&n| n < 0 || n as usize > time) {
        None => Ok(()),
        Some(index) => Err(Error::Value {
            tensor: "lengths",
            index,
            got: lengths[index].to_string(),
            want: format!("0 to {time}"),
        }),
    }
}
