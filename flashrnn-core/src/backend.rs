//! What a backend is: memory, and plans that run the recurrence.

use bytemuck::Pod;

use crate::{Cell, Dtype, Element, Error, Problem, Result, Save, Shapes};

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
/// The cut is at the recurrence, never at the operation. `plan` is the only generic boundary: a CPU monomorphises
/// the cell there, a GPU traces, prints and compiles it. What a backend can't do is [`Error::Unsupported`] from
/// `plan`, never from a later call.
pub trait Backend: Clone + Send + Sync + 'static {
    /// Owned memory for `P`s.
    type Buffer<P: Pod + Send + Sync>: Send + Sync;
    /// A borrowed part of a buffer, or of memory that somebody else owns.
    type View<'a, P: Pod + Send + Sync>: Copy + Send + Len;
    /// A part borrowed for writing.
    type ViewMut<'a, P: Pod + Send + Sync>: Send + Len;
    /// A problem made ready to run with tensors of `T` and weights of `W`.
    type Plan<T: Element, W: Element>: Plan<T, W, Backend = Self>;

    /// Whether calls refuse lengths outside 0 to T with [`Error::Value`]. Where lengths lie on a device, kernels clamp them
    /// instead.
    const CHECKS_LENGTHS: bool = true;

    /// The name, device and element types.
    fn info(&self) -> Info;

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

    /// The whole buffer, for reading.
    fn view<'a, P: Pod + Send + Sync>(&self, buffer: &'a Self::Buffer<P>) -> Self::View<'a, P>;

    /// The whole buffer, for writing.
    fn view_mut<'a, P: Pod + Send + Sync>(&self, buffer: &'a mut Self::Buffer<P>) -> Self::ViewMut<'a, P>;

    /// Makes `problem` with `cell` ready to run.
    ///
    /// # Errors
    /// [`Error::Option`] where the problem makes no sense, [`Error::Unsupported`] where this backend can't do it,
    /// [`Error::Compile`] where a kernel fails to compile.
    fn plan<T: Element, W: Element, C: Cell>(&self, cell: &C, problem: &Problem) -> Result<Self::Plan<T, W>>;
}

/// A problem made ready to run. Methods only enqueue; the plan holds no call's data, so several calls may be under
/// way at once and two forwards may run before one backward.
pub trait Plan<T: Element, W: Element>: Send + Sync {
    /// The backend this plan runs on.
    type Backend: Backend;
    /// R and b in the order this plan's kernels read them: packed once, used by many calls.
    type Weights: Send + Sync;

    /// The problem as given to `plan`.
    fn problem(&self) -> &Problem;

    /// The shape of every tensor.
    fn shapes(&self) -> &Shapes;

    /// Packs `r [Gr, N, D_out, D_in]` and `b [G, N, D]`.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::OutOfMemory`]
    fn pack(
        &self,
        r: <Self::Backend as Backend>::View<'_, W>,
        b: <Self::Backend as Backend>::View<'_, W>,
    ) -> Result<Self::Weights>;

    /// Room for what the forward pass leaves to the backward pass.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]
    fn saved(&self) -> Result<Saved<Self::Backend, T>>;

    /// Runs all time steps.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::Value`] for tensors that don't fit the problem.
    fn forward(&self, call: Forward<'_, Self::Backend, T, W>) -> Result<()>;

    /// Computes the gradients.
    ///
    /// # Errors
    /// As [`Plan::forward`], and [`Error::Argument`] where a tensor is missing.
    fn backward(&self, call: Backward<'_, Self::Backend, T, W>) -> Result<()>;

    /// Advances a state by one time step, without allocating. The problem's T, lengths and direction play no part.
    ///
    /// # Errors
    /// As [`Plan::forward`].
    fn step(&self, call: Step<'_, Self::Backend, T, W>) -> Result<()>;
}

/// The packed weights of `B`'s plans.
pub type Weights<B, T, W> = <<B as Backend>::Plan<T, W> as Plan<T, W>>::Weights;

/// What a forward pass leaves to its backward pass, besides the states. It belongs to the caller, who gives none for
/// inference. The order of its elements is the backend's own.
pub struct Saved<B: Backend, T: Element> {
    /// Gates: `B·T·G·N·D` elements with [`Save::Gates`], none with [`Save::Recompute`].
    pub gates: B::Buffer<T>,
    /// [`Cell::WIDE`] states and, with [`Save::Gates`], [`Cell::WIDE_GATES`] in full, where `T` is 16 bits.
    pub wide: B::Buffer<T::Wide>,
}

impl<B: Backend, T: Element> Saved<B, T> {
    /// Allocates what `shapes` and `save` ask for.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]
    pub fn new(backend: &B, shapes: &Shapes, save: Save) -> Result<Self> {
        let [gates, wide] = Self::sizes(shapes, save);
        Ok(Self { gates: backend.alloc(gates)?, wide: backend.alloc(wide)? })
    }

    fn sizes(shapes: &Shapes, save: Save) -> [usize; 2] {
        let step = shapes.tokens() * shapes.units();
        let gates = if save == Save::Gates { shapes.gates * step } else { 0 };
        let wide_gates = if save == Save::Gates { shapes.wide_gates.len() } else { 0 };
        let wide = if size_of::<T>() < size_of::<T::Wide>() { shapes.wide.len() + wide_gates } else { 0 };
        [gates, wide * step]
    }

    fn check(&self, backend: &B, shapes: &Shapes, save: Save) -> Result<()> {
        let [gates, wide] = Self::sizes(shapes, save);
        Shapes::check("saved.gates", backend.view(&self.gates).len(), &[gates])?;
        Shapes::check("saved.wide", backend.view(&self.wide).len(), &[wide])
    }
}

/// The arguments of [`Plan::forward`].
pub struct Forward<'a, B: Backend, T: Element, W: Element> {
    /// `[B, T, Gx, N, D]`, the input pre-activations `W x`.
    pub wx: B::View<'a, T>,
    /// R and b, from [`Plan::pack`].
    pub weights: &'a Weights<B, T, W>,
    /// `[S, B, N, D]`, the initial state; zeros if absent.
    pub s0: Option<B::View<'a, T::Wide>>,
    /// `[B]`: row b has `lengths[b]` steps, 0 to T. Later outputs are zero.
    pub lengths: Option<B::View<'a, i32>>,
    /// `[B, T]`: where not 0, the state is zeroed before that step, in processing order.
    pub resets: Option<B::View<'a, u8>>,
    /// `[B, T, N, D]`, written: h alone.
    pub h: Option<B::ViewMut<'a, T>>,
    /// `[S, B, T, N, D]`, written: every state. The backward pass needs it.
    pub states: Option<B::ViewMut<'a, T>>,
    /// `[S, B, N, D]`, written: the state each row ends in.
    pub last: Option<B::ViewMut<'a, T::Wide>>,
    /// From [`Plan::saved`], written: what the backward pass needs besides `states`.
    pub saved: Option<&'a mut Saved<B, T>>,
}

impl<'a, B: Backend, T: Element, W: Element> Forward<'a, B, T, W> {
    /// A call with no optional tensor; name those there are by struct update.
    pub fn new(wx: B::View<'a, T>, weights: &'a Weights<B, T, W>) -> Self {
        Self {
            wx,
            weights,
            s0: None,
            lengths: None,
            resets: None,
            h: None,
            states: None,
            last: None,
            saved: None,
        }
    }

    /// Checks the size of every tensor given.
    ///
    /// # Errors
    /// [`Error::Shape`]
    pub fn check(&self, backend: &B, shapes: &Shapes, save: Save) -> Result<()> {
        Shapes::check("wx", self.wx.len(), &shapes.wx())?;
        check("s0", &self.s0, &shapes.state())?;
        check("lengths", &self.lengths, &[shapes.batch])?;
        check("resets", &self.resets, &shapes.resets())?;
        check("h", &self.h, &shapes.h())?;
        check("states", &self.states, &shapes.states())?;
        check("last", &self.last, &shapes.state())?;
        self.saved.as_ref().map_or(Ok(()), |saved| saved.check(backend, shapes, save))
    }
}

/// The arguments of [`Plan::backward`]. Every gradient that is not asked for may be absent.
pub struct Backward<'a, B: Backend, T: Element, W: Element> {
    /// The weights of the forward pass.
    pub weights: &'a Weights<B, T, W>,
    /// The `states` that the forward pass wrote.
    pub states: B::View<'a, T>,
    /// What the forward pass saved.
    pub saved: &'a Saved<B, T>,
    /// The `wx` of the forward pass; needed with [`Save::Recompute`] only.
    pub wx: Option<B::View<'a, T>>,
    /// The `s0` of the forward pass.
    pub s0: Option<B::View<'a, T::Wide>>,
    /// The `lengths` of the forward pass.
    pub lengths: Option<B::View<'a, i32>>,
    /// The `resets` of the forward pass.
    pub resets: Option<B::View<'a, u8>>,
    /// `[B, T, N, D]`: the gradient of h at every step. Excludes `d_states`.
    pub d_h: Option<B::View<'a, T>>,
    /// `[S, B, T, N, D]`: the gradient of every state at every step. Excludes `d_h`.
    pub d_states: Option<B::View<'a, T>>,
    /// `[S, B, N, D]`: the gradient of the last state.
    pub d_last: Option<B::View<'a, T::Wide>>,
    /// `[B, T, Gx, N, D]`, written. Steps beyond a row's length get 0.
    pub d_wx: B::ViewMut<'a, T>,
    /// `[Gr, N, D_out, D_in]`, written, or added to with `accumulate`.
    pub d_r: Option<B::ViewMut<'a, W>>,
    /// `[G, N, D]`, written, or added to with `accumulate`.
    pub d_b: Option<B::ViewMut<'a, W>>,
    /// `[S, B, N, D]`, written.
    pub d_s0: Option<B::ViewMut<'a, T::Wide>>,
    /// Add to `d_r` and `d_b` instead of overwriting them.
    pub accumulate: bool,
}

impl<'a, B: Backend, T: Element, W: Element> Backward<'a, B, T, W> {
    /// A call that computes `d_wx` only, from no gradient; name what there is by struct update.
    pub fn new(
        weights: &'a Weights<B, T, W>,
        states: B::View<'a, T>,
        saved: &'a Saved<B, T>,
        d_wx: B::ViewMut<'a, T>,
    ) -> Self {
        Self {
            weights,
            states,
            saved,
            wx: None,
            s0: None,
            lengths: None,
            resets: None,
            d_h: None,
            d_states: None,
            d_last: None,
            d_wx,
            d_r: None,
            d_b: None,
            d_s0: None,
            accumulate: false,
        }
    }

    /// Checks that every tensor needed is there and has its size.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Argument`]
    pub fn check(&self, backend: &B, shapes: &Shapes, save: Save) -> Result<()> {
        if save == Save::Recompute && self.wx.is_none() {
            return Err(Error::Argument {
                tensor: "wx",
                why: "needed in the backward pass with Save::Recompute",
            });
        }
        if self.d_h.is_some() && self.d_states.is_some() {
            return Err(Error::Argument { tensor: "d_h", why: "excludes d_states, whose first part it is" });
        }
        Shapes::check("states", self.states.len(), &shapes.states())?;
        self.saved.check(backend, shapes, save)?;
        check("wx", &self.wx, &shapes.wx())?;
        check("s0", &self.s0, &shapes.state())?;
        check("lengths", &self.lengths, &[shapes.batch])?;
        check("resets", &self.resets, &shapes.resets())?;
        check("d_h", &self.d_h, &shapes.h())?;
        check("d_states", &self.d_states, &shapes.states())?;
        check("d_last", &self.d_last, &shapes.state())?;
        Shapes::check("d_wx", self.d_wx.len(), &shapes.wx())?;
        check("d_r", &self.d_r, &shapes.r())?;
        check("d_b", &self.d_b, &shapes.b())?;
        check("d_s0", &self.d_s0, &shapes.state())
    }
}

/// The arguments of [`Plan::step`].
pub struct Step<'a, B: Backend, T: Element, W: Element> {
    /// `[B, Gx, N, D]`, the input pre-activations of this step.
    pub wx: B::View<'a, T>,
    /// R and b, from [`Plan::pack`].
    pub weights: &'a Weights<B, T, W>,
    /// `[S, B, N, D]`: the state before the step on entry, after it on return.
    pub state: B::ViewMut<'a, T::Wide>,
    /// `[B, N, D]`, written: h, rounded to `T`.
    pub h: Option<B::ViewMut<'a, T>>,
}

impl<B: Backend, T: Element, W: Element> Step<'_, B, T, W> {
    /// Checks the size of every tensor.
    ///
    /// # Errors
    /// [`Error::Shape`]
    pub fn check(&self, shapes: &Shapes) -> Result<()> {
        let (batch, heads, head_dim) = (shapes.batch, shapes.heads, shapes.head_dim);
        Shapes::check("wx", self.wx.len(), &[batch, shapes.external, heads, head_dim])?;
        Shapes::check("state", self.state.len(), &shapes.state())?;
        check("h", &self.h, &[batch, heads, head_dim])
    }
}

fn check(tensor: &'static str, view: &Option<impl Len>, want: &[usize]) -> Result<()> {
    view.as_ref().map_or(Ok(()), |view| Shapes::check(tensor, view.len(), want))
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
