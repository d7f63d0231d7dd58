//! The traits a backend implements, and the arguments of their calls.
//!
//! The definitions refer to each other, so they share a file. Constructors and checks are in
//! `call.rs`, `saved.rs` and `weights.rs`.

use std::fmt::Debug;
use std::sync::Arc;

use bytemuck::Pod;

use crate::{Cell, Element, Error, Info, Len, Problem, Result, Shapes, WeightsLayout, Workspace};

/// A device that runs recurrences, with its memory.
///
/// The interface is the whole recurrence, not single operations. Only `plan` is generic over the
/// cell: there a CPU monomorphises the cell, and a GPU traces, prints and compiles it. A backend
/// reports what it does not support as [`Error::Unsupported`] from `plan`, never from a call of
/// that plan.
pub trait Backend: Clone + Send + Sync + 'static {
    /// Owned memory for elements of `P`.
    type Buffer<P: Pod + Send + Sync>: Send + Sync;
    /// A borrowed part of a buffer, or of memory owned by someone else.
    type View<'a, P: Pod + Send + Sync>: Copy + Send + Len;
    /// A mutably borrowed part of a buffer, or of memory owned by someone else.
    type ViewMut<'a, P: Pod + Send + Sync>: Send + Len;
    /// R and b for tensors of `T`, in the order in which this backend's kernels read them. In safe
    /// code, only [`Plan::pack`] returns such a value, and it cannot be copied.
    type Packed<T: Element>: Send + Sync;
    /// Everything that the order of packed weights depends on besides `Gr`, `G`, `N` and `D`, such
    /// as the widths of vectors and tiles, or the device. The order never depends on the batch
    /// size, the number of time steps, the parameters of a cell or the number of threads.
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
    /// [`Error::OutOfMemory`] if there is too little memory, [`Error::Device`] if the device fails.
    fn alloc<P: Pod + Send + Sync>(&self, len: usize) -> Result<Self::Buffer<P>>;

    /// Allocates a buffer and copies `data` into it.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if there is too little memory, [`Error::Device`] if the device fails.
    fn upload<P: Pod + Send + Sync>(&self, data: &[P]) -> Result<Self::Buffer<P>>;

    /// Copies `view` to host memory after waiting for everything enqueued before.
    ///
    /// # Errors
    /// [`Error::Argument`] for memory of another device or stream, [`Error::OutOfMemory`] if there
    /// is too little memory, [`Error::Device`] if the device or earlier work failed.
    fn download<P: Pod + Send + Sync>(&self, view: Self::View<'_, P>) -> Result<Vec<P>>;

    /// Waits until everything enqueued has run.
    ///
    /// # Errors
    /// [`Error::Device`] with the first failure among the enqueued work.
    fn synchronize(&self) -> Result<()>;

    /// Frees memory that is cached for later calls but not in use.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails.
    fn trim(&self) -> Result<()>;

    /// Borrows the whole buffer for reading.
    fn view<'a, P: Pod + Send + Sync>(&self, buffer: &'a Self::Buffer<P>) -> Self::View<'a, P>;

    /// Borrows the whole buffer for writing.
    fn view_mut<'a, P: Pod + Send + Sync>(
        &self,
        buffer: &'a mut Self::Buffer<P>,
    ) -> Self::ViewMut<'a, P>;

    /// Prepares `problem` with `cell` to run on tensors of `T` and weights of `W`. `W` is `T`, or
    /// f32 if `T` is 16 bits. Both types are inferred from the tensors passed to the plan's calls
    /// (beware that unsuffixed literals are f64), or named explicitly, as in
    /// `plan::<f32, f32, _>(…)`.
    ///
    /// # Errors
    /// [`Error::InvalidProblem`] if the problem is invalid, [`Error::Unsupported`] if this backend
    /// does not support it, [`Error::Compile`] if a kernel fails to compile, [`Error::OutOfMemory`]
    /// if there is too little memory, [`Error::Device`] if the device fails.
    fn plan<T: Element, W: Element, C: Cell>(
        &self,
        cell: &C,
        problem: &Problem,
    ) -> Result<Self::Plan<T, W>>;
}

/// A problem prepared to run.
///
/// Methods may return before their work has run. A plan holds no data of its calls, so several
/// calls may run at once, and two forward passes may precede one backward pass.
pub trait Plan<T: Element, W: Element>: Send + Sync {
    /// The backend this plan runs on.
    type Backend: Backend;
    /// Returns the problem passed to `plan`.
    fn problem(&self) -> &Problem;

    /// Returns the sizes, and with them the shape of every tensor.
    fn shapes(&self) -> &Shapes;

    /// Returns the layout of this plan's packed weights. Every call compares it with the layout of
    /// the weights passed to the call.
    fn weights_layout(&self) -> &Arc<WeightsLayout<<Self::Backend as Backend>::PackedOrder>>;

    /// Returns whether this plan's calls accept `weights`, which they do if the plan that packed
    /// `weights` has an equal layout.
    fn accepts(&self, weights: &Weights<Self::Backend, T>) -> bool {
        weights.has_layout(self.weights_layout())
    }

    /// Packs `r [Gr, N, D_out, D_in]` and `b [G, N, D]` for any number of calls of this plan, and
    /// of every other plan that [accepts](Plan::accepts) the result.
    ///
    /// # Errors
    /// [`Error::Shape`] if `r` or `b` has the wrong size, [`Error::Argument`] for memory of another
    /// device, [`Error::OutOfMemory`] if there is too little memory, [`Error::Device`] if the
    /// device fails.
    fn pack(
        &self,
        r: <Self::Backend as Backend>::View<'_, W>,
        b: <Self::Backend as Backend>::View<'_, W>,
    ) -> Result<Weights<Self::Backend, T>>;

    /// Allocates memory for what the forward pass saves for the backward pass. Callers that provide
    /// their own memory find the required sizes in [`Shapes::saved`].
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if there is too little memory, [`Error::Device`] if the device fails.
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
    /// memory of another device; [`Error::OutOfMemory`] if there is too little memory,
    /// [`Error::Device`] if the device fails.
    fn forward(&self, call: Forward<'_, Self::Backend, T>) -> Result<()>;

    /// Computes the gradients by backpropagation through time.
    ///
    /// # Errors
    /// The same as [`Plan::forward`], and [`Error::Argument`] if a tensor is missing.
    fn backward(&self, call: Backward<'_, Self::Backend, T, W>) -> Result<()>;

    /// Advances a state by one time step, with scratch memory that the plan or a pool keeps.
    /// Ignores the problem's T and direction.
    ///
    /// # Errors
    /// The same as [`Plan::forward`].
    fn step(&self, call: Step<'_, Self::Backend, T>) -> Result<()>;
}

/// The arguments of [`Plan::forward`].
pub struct Forward<'a, B: Backend, T: Element> {
    /// R and b, from [`Plan::pack`].
    pub weights: &'a Weights<B, T>,
    /// `[B, T, Gx, N, D]`, the input pre-activations `W x`.
    pub wx: B::View<'a, T>,
    /// `[S, B, N, D]`, the initial state; zeros if absent.
    pub s0: Option<B::View<'a, T::Wide>>,
    /// `[B]`: row b has `lengths[b]` steps, 0 to T. Later outputs are zero.
    pub lengths: Option<B::View<'a, i32>>,
    /// `[B, T]`: a nonzero flag zeroes the row's state before that step is processed.
    pub resets: Option<B::View<'a, u8>>,
    /// `[B, T, N, D]`, written: h at every step.
    pub h: Option<B::ViewMut<'a, T>>,
    /// `[S, B, T, N, D]`, written: every state at every step. The backward pass needs it.
    pub states: Option<B::ViewMut<'a, T>>,
    /// `[S, B, N, D]`, written: the final state of each row.
    pub last: Option<B::ViewMut<'a, T::Wide>>,
    /// Memory for what the backward pass needs besides `states`, written. If present, `states` is
    /// required too. Comes from [`Plan::saved`] or from the caller; inference passes `None`.
    pub saved: Option<SavedMut<'a, B, T>>,
    /// Scratch memory of the size given by [`Plan::forward_workspace`]. If absent, the call takes
    /// scratch memory from a pool.
    pub workspace: Option<B::ViewMut<'a, u8>>,
}

/// The arguments of [`Plan::backward`]. Every gradient but `d_wx` may be left out.
pub struct Backward<'a, B: Backend, T: Element, W: Element> {
    /// The weights of the forward pass.
    pub weights: &'a Weights<B, T>,
    /// The `states` that the forward pass wrote.
    pub states: B::View<'a, T>,
    /// What the forward pass saved.
    pub saved: SavedRef<'a, B, T>,
    /// The `wx` of the forward pass; required with [`Save::Recompute`](crate::Save::Recompute) and
    /// otherwise unused.
    pub wx: Option<B::View<'a, T>>,
    /// The `s0` of the forward pass.
    pub s0: Option<B::View<'a, T::Wide>>,
    /// The `lengths` of the forward pass.
    pub lengths: Option<B::View<'a, i32>>,
    /// The `resets` of the forward pass.
    pub resets: Option<B::View<'a, u8>>,
    /// `[B, T, N, D]`: the gradient of h at every step. Mutually exclusive with `d_states`.
    pub d_h: Option<B::View<'a, T>>,
    /// `[S, B, T, N, D]`: the gradient of every state at every step. Mutually exclusive with `d_h`.
    pub d_states: Option<B::View<'a, T>>,
    /// `[S, B, N, D]`: the gradient of each row's final state.
    pub d_last: Option<B::View<'a, T::Wide>>,
    /// `[B, T, Gx, N, D]`, written. Steps beyond a row's length are set to 0.
    pub d_wx: B::ViewMut<'a, T>,
    /// `[Gr, N, D_out, D_in]`, written, or added to with `accumulate`.
    pub d_r: Option<B::ViewMut<'a, W>>,
    /// `[G, N, D]`, written, or added to with `accumulate`.
    pub d_b: Option<B::ViewMut<'a, W>>,
    /// `[S, B, N, D]`, written.
    pub d_s0: Option<B::ViewMut<'a, T::Wide>>,
    /// Whether to add to `d_r` and `d_b` instead of overwriting them.
    pub accumulate: bool,
    /// Scratch memory of the size given by [`Plan::backward_workspace`]. If absent, the call takes
    /// scratch memory from a pool.
    pub workspace: Option<B::ViewMut<'a, u8>>,
}

/// The arguments of [`Plan::step`].
pub struct Step<'a, B: Backend, T: Element> {
    /// R and b, from [`Plan::pack`].
    pub weights: &'a Weights<B, T>,
    /// `[B, Gx, N, D]`, the input pre-activations of this step.
    pub wx: B::View<'a, T>,
    /// `[S, B, N, D]`: the state before the step on entry, after it on return.
    pub state: B::ViewMut<'a, T::Wide>,
    /// `[B, N, D]`, written: h after the step, rounded to `T`.
    pub h: Option<B::ViewMut<'a, T>>,
}

/// Owns the memory in which a forward pass saves values for its backward pass. Made by
/// [`Plan::saved`]. Callers with their own allocator instead pass views of two buffers, of the
/// sizes given by [`Shapes::saved`].
///
/// The order of the elements is private to the backend. Only a plan for the same cell, sizes and
/// options, on the same backend and device, reads back what the forward pass wrote. Another plan of
/// equal sizes computes wrong gradients from it, but never reads out of bounds.
pub struct Saved<B: Backend, T: Element> {
    pub(crate) backend: B,
    pub(crate) gates: B::Buffer<T>,
    pub(crate) wide: B::Buffer<T::Wide>,
}

/// Borrows what a forward pass saved, for reading. See [`Saved`].
pub struct SavedRef<'a, B: Backend, T: Element> {
    /// `B·T·G·N·D` gates with [`Save::Gates`](crate::Save::Gates), none with
    /// [`Save::Recompute`](crate::Save::Recompute).
    pub gates: B::View<'a, T>,
    /// The cell's [`WIDE`](crate::Cell::WIDE) states and [`WIDE_GATES`](crate::Cell::WIDE_GATES) in
    /// full precision, if `T` is 16 bits.
    pub wide: B::View<'a, T::Wide>,
}

/// Borrows the memory of what a forward pass saves, for writing. See [`Saved`].
pub struct SavedMut<'a, B: Backend, T: Element> {
    /// See [`SavedRef::gates`].
    pub gates: B::ViewMut<'a, T>,
    /// See [`SavedRef::wide`].
    pub wide: B::ViewMut<'a, T::Wide>,
}

/// Holds R and b, packed by [`Plan::pack`]. Every plan with an equal layout accepts them, whatever
/// its batch, time, options and number of threads.
pub struct Weights<B: Backend, T: Element> {
    pub(crate) layout: Arc<WeightsLayout<B::PackedOrder>>,
    pub(crate) packed: B::Packed<T>,
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
