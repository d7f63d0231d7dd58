//! What a backend is: memory, and plans that run the recurrence.

use std::fmt::Debug;
use std::sync::Arc;

use bytemuck::Pod;

use crate::{
    Backward, Cell, Dtype, Element, Error, Forward, Problem, Result, Saved, Shapes, Step, Weights,
    WeightsLayout,
};

/// The number of elements a view covers.
pub trait Len {
    /// The number of elements.
    fn len(&self) -> usize;
    /// Whether there are none.
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

/// What a backend says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// The backend's name: `cpu`, `cuda`, `wgpu`.
    pub name: &'static str,
    /// The device it runs on, for people.
    pub device: String,
    /// The element types `T` it takes.
    pub dtypes: Vec<Dtype>,
}

/// A place where recurrences run.
///
/// The cut is at the recurrence, never at the operation. `plan` is the only generic boundary: a CPU
/// monomorphises the cell there, a GPU traces, prints and compiles it. What a backend can't do is
/// [`Error::Unsupported`] from `plan`, never from a later call.
pub trait Backend: Clone + Send + Sync + 'static {
    /// Owned memory for `P`s.
    type Buffer<P: Pod + Send + Sync>: Send + Sync;
    /// A borrowed part of a buffer, or of memory that somebody else owns.
    type View<'a, P: Pod + Send + Sync>: Copy + Send + Len;
    /// A part borrowed for writing.
    type ViewMut<'a, P: Pod + Send + Sync>: Send + Len;
    /// R and b in the order in which this backend's kernels read them, for tensors of `T`. Safe
    /// code can neither make nor copy one but by [`Plan::pack`].
    type Packed<T: Element>: Send + Sync;
    /// What that order depends on besides `Gr`, `G`, `N` and `D`: widths of vectors and tiles, the
    /// device. Never the batch, the time, a cell's own numbers or how many threads there are.
    type PackedOrder: Clone + Debug + Eq + Send + Sync + 'static;
    /// A problem made ready to run with tensors of `T` and weights of `W`.
    type Plan<T: Element, W: Element>: Plan<T, W, Backend = Self>;

    /// The name, device and element types.
    fn info(&self) -> Info;

    /// Whether calls refuse lengths outside 0 to T with [`Error::Value`]. Where lengths lie on a
    /// device, kernels clamp them instead.
    fn checks_lengths(&self) -> bool {
        true
    }

    /// A zeroed buffer of `len` elements.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]
    fn alloc<P: Pod + Send + Sync>(&self, len: usize) -> Result<Self::Buffer<P>>;

    /// A buffer with a copy of `data`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]
    fn upload<P: Pod + Send + Sync>(&self, data: &[P]) -> Result<Self::Buffer<P>>;

    /// A copy of `view` in host memory; waits for all that was enqueued before.
    ///
    /// # Errors
    /// [`Error::Device`]
    fn download<P: Pod + Send + Sync>(&self, view: Self::View<'_, P>) -> Result<Vec<P>>;

    /// Waits until everything enqueued has run.
    ///
    /// # Errors
    /// [`Error::Device`] with the first failure of what was enqueued.
    fn synchronize(&self) -> Result<()>;

    /// Gives memory that is kept for later calls, and that no call uses now, back to the system.
    ///
    /// # Errors
    /// [`Error::Device`]
    fn trim(&self) -> Result<()>;

    /// The whole buffer, for reading.
    fn view<'a, P: Pod + Send + Sync>(&self, buffer: &'a Self::Buffer<P>) -> Self::View<'a, P>;

    /// The whole buffer, for writing.
    fn view_mut<'a, P: Pod + Send + Sync>(
        &self,
        buffer: &'a mut Self::Buffer<P>,
    ) -> Self::ViewMut<'a, P>;

    /// Makes `problem` with `cell` ready to run, with tensors of `T` and weights of `W`: the same
    /// type, or f32 weights beside 16-bit tensors. Both are inferred from the tensors that the
    /// plan's calls are given (unsuffixed literals are f64), or named: `plan::<f32, f32, _>(…)`.
    ///
    /// # Errors
    /// [`Error::InvalidProblem`] where the problem makes no sense, [`Error::Unsupported`] where
    /// this backend can't do it, [`Error::Compile`] where a kernel fails to compile.
    fn plan<T: Element, W: Element, C: Cell>(
        &self,
        cell: &C,
        problem: &Problem,
    ) -> Result<Self::Plan<T, W>>;
}

/// A problem made ready to run. Methods only enqueue; the plan holds no call's data, so several
/// calls may be under way at once and two forwards may run before one backward.
pub trait Plan<T: Element, W: Element>: Send + Sync {
    /// The backend this plan runs on.
    type Backend: Backend;
    /// The problem as given to `plan`.
    fn problem(&self) -> &Problem;

    /// The shape of every tensor.
    fn shapes(&self) -> &Shapes;

    /// How this plan's packed weights are laid out: the key by which calls tell them from another
    /// plan's.
    fn weights_layout(&self) -> &Arc<WeightsLayout<<Self::Backend as Backend>::PackedOrder>>;

    /// Whether this plan's calls take `weights`: those packed by any plan whose layout is equal.
    fn accepts(&self, weights: &Weights<Self::Backend, T>) -> bool {
        weights.has_layout(self.weights_layout())
    }

    /// Packs `r [Gr, N, D_out, D_in]` and `b [G, N, D]`, once for many calls of this plan and of
    /// all that accept the result.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::OutOfMemory`]
    fn pack(
        &self,
        r: <Self::Backend as Backend>::View<'_, W>,
        b: <Self::Backend as Backend>::View<'_, W>,
    ) -> Result<Weights<Self::Backend, T>>;

    /// Allocates room for what the forward pass leaves to the backward pass. Its sizes, for memory
    /// of the caller's own, are [`Shapes::saved`].
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]
    fn saved(&self) -> Result<Saved<Self::Backend, T>>;

    /// The scratch memory that [`Plan::forward`] works in.
    fn forward_workspace(&self) -> Workspace;

    /// The scratch memory that [`Plan::backward`] works in.
    fn backward_workspace(&self) -> Workspace;

    /// Runs all time steps.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::Value`] for tensors that don't fit the problem,
    /// [`Error::Argument`] for weights that this plan does not [accept](Plan::accepts), and for
    /// memory of another device.
    fn forward(&self, call: Forward<'_, Self::Backend, T>) -> Result<()>;

    /// Computes the gradients.
    ///
    /// # Errors
    /// As [`Plan::forward`], and [`Error::Argument`] where a tensor is missing.
    fn backward(&self, call: Backward<'_, Self::Backend, T, W>) -> Result<()>;

    /// Advances a state by one time step, without allocating. The problem's T, lengths and
    /// direction play no part.
    ///
    /// # Errors
    /// As [`Plan::forward`].
    fn step(&self, call: Step<'_, Self::Backend, T>) -> Result<()>;
}

/// Scratch memory that a pass works in: what it holds afterwards has no meaning. A call that is
/// given none takes it from a pool of the backend's or the plan's; a call that is given one
/// allocates nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workspace {
    /// The size in bytes; 0 where the pass needs none.
    pub bytes: usize,
    /// What the address must be a multiple of, a power of two.
    pub align: usize,
}

impl Workspace {
    /// No memory at all.
    pub const NONE: Self = Self { bytes: 0, align: 1 };
}

/// Checks lengths that lie in host memory.
///
/// # Errors
/// [`Error::Value`] where one is negative or above `time`.
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
