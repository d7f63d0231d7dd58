//! The trait of recurrent cells: one pointwise function, written once.

use crate::{Dual, Real};

mod sealed {
    pub trait Sealed {}
    impl<R, const LEN: usize> Sealed for [R; LEN] {}
}

/// A fixed-length array that holds the states or the gates of one unit. Implemented only by
/// `[R; LEN]`, so that kernels can rely on its length.
///
/// ```compile_fail,E0277
/// #[derive(Clone, Copy)]
/// struct Liar([f32; 1]);
///
/// impl AsRef<[f32]> for Liar {
///     fn as_ref(&self) -> &[f32] {
///         &self.0
///     }
/// }
/// impl AsMut<[f32]> for Liar {
///     fn as_mut(&mut self) -> &mut [f32] {
///         &mut self.0
///     }
/// }
/// impl flashrnn_core::Array<f32> for Liar {
///     const LEN: usize = 1000; // kernels would write beyond it
///     fn splat(v: f32) -> Self {
///         Self([v])
///     }
/// }
/// ```
pub trait Array<R>: Copy + AsRef<[R]> + AsMut<[R]> + sealed::Sealed {
    /// The number of elements.
    const LEN: usize;
    /// Makes an array of equal elements, to be filled in a loop. (Filling it from a closure would
    /// keep the CPU backend from inlining the cell.)
    fn splat(v: R) -> Self;
}

impl<R: Copy, const LEN: usize> Array<R> for [R; LEN] {
    const LEN: usize = LEN;
    #[inline(always)]
    fn splat(v: R) -> Self {
        [v; LEN]
    }
}

/// Declares a gate (pre-activation) of a cell: its name, and the inputs it takes besides its bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    name: &'static str,
    pub(crate) recurrent: bool,
    pub(crate) external: bool,
}

impl Gate {
    /// Declares a gate that takes `R h` but no external input, such as GRU's `n_h`.
    #[must_use]
    pub const fn recurrent(name: &'static str) -> Self {
        Self { name, recurrent: true, external: false }
    }

    /// Declares a gate that takes both `R h` and external input.
    #[must_use]
    pub const fn both(name: &'static str) -> Self {
        Self { name, recurrent: true, external: true }
    }

    /// Declares a gate that takes external input but no `R h`, such as GRU's `n_x`. If its external
    /// input is zero, its value is its bias, which serves as a trainable parameter of the cell.
    #[must_use]
    pub const fn external(name: &'static str) -> Self {
        Self { name, recurrent: false, external: true }
    }

    /// Returns the gate's name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }
}

/// A recurrent cell: `s_t = P(s_{t-1}, g_t)` with `g_t = R s⁰_{t-1} + x_t + b`, where `P` acts
/// elementwise.
///
/// You write [`forward`](Cell::forward), generic over the type of number it computes with; the code
/// of every backend and of every derivative is generated from that one function. State 0 is h,
/// which `R` multiplies. Every gate receives its bias `b`; [`GATES`](Cell::GATES) declares which
/// gates receive `R h` and which receive `x`.
///
/// Mark `forward` (and `backward`) `#[inline(always)]`: the CPU backend inlines them into its SIMD
/// loops and is many times slower if it can't.
///
/// ```
/// use flashrnn_core::{Cell, Gate, Real};
///
/// /// A leaky integrator: `h' = h + a (tanh(g) - h)`.
/// #[derive(Clone)]
/// struct Leaky {
///     a: f64,
/// }
///
/// impl Cell for Leaky {
///     const NAME: &'static str = "leaky";
///     const STATES: &'static [&'static str] = &["h"];
///     const GATES: &'static [Gate] = &[Gate::both("g")];
///     type State<R: Real> = [R; 1];
///     type Gates<R: Real> = [R; 1];
///     #[inline(always)]
///     fn forward<R: Real>(&self, [h]: [R; 1], [g]: [R; 1]) -> [R; 1] {
///         [h + R::lit(self.a) * (g.tanh() - h)]
///     }
/// }
/// ```
///
/// # Parameters of a cell
/// A constant shared by all units is a field of the cell, like `a` above. A trainable parameter
/// with one value per unit is the bias of a gate declared with [`Gate::external`]: pass zeros as
/// its external input, so that the gate's value is its bias, and find the gradient in `d_b`. To
/// keep the parameter within a range, apply a function to it in `forward` (`a.sigmoid()`).
///
/// ```
/// use flashrnn_core::{Cell, Gate, Real};
///
/// /// A leaky integrator that learns each unit's rate: `h' = h + σ(a) (tanh(g) - h)`.
/// #[derive(Clone)]
/// struct Learned;
///
/// impl Cell for Learned {
///     const NAME: &'static str = "learned";
///     const STATES: &'static [&'static str] = &["h"];
///     const GATES: &'static [Gate] = &[Gate::both("g"), Gate::external("a")];
///     type State<R: Real> = [R; 1];
///     type Gates<R: Real> = [R; 2];
///     #[inline(always)]
///     fn forward<R: Real>(&self, [h]: [R; 1], [g, a]: [R; 2]) -> [R; 1] {
///         [h + a.sigmoid() * (g.tanh() - h)]
///     }
/// }
/// ```
///
/// # What a cell can't do
/// A cell computes with [`Real`]: constants are written `R::lit(1.0)`, and conditions use
/// [`Real::gt`] and [`Real::select`] instead of branches. `P` is elementwise and deterministic, so
/// the following can't be written as a cell: a layer norm inside the step (it needs all units), a
/// projection of h (`R` multiplies h itself), peepholes across units, and random numbers (dropout
/// inside the step).
///
/// # Compile-time checks
/// A cell whose constants contradict each other does not compile. See
/// [`CellSizes`](crate::CellSizes).
///
/// ```compile_fail,E0080
/// use flashrnn_core::{Cell, Gate, Problem, Real};
///
/// #[derive(Clone)]
/// struct Wrong;
///
/// impl Cell for Wrong {
///     const NAME: &'static str = "wrong";
///     const STATES: &'static [&'static str] = &["h"];
///     // A gate that takes recurrent input follows one that takes none.
///     const GATES: &'static [Gate] = &[Gate::external("x"), Gate::recurrent("h")];
///     type State<R: Real> = [R; 1];
///     type Gates<R: Real> = [R; 2];
///     fn forward<R: Real>(&self, state: [R; 1], _: [R; 2]) -> [R; 1] {
///         state
///     }
/// }
/// let shapes = Problem::new(1, 1, 1, 1).shapes::<Wrong>();
/// ```
pub trait Cell: Clone + Send + Sync + 'static {
    /// The name in lower case, as used on the command line and in kernel caches.
    const NAME: &'static str;
    /// The names of the states, at most 32, in order. The first is h, which `R` multiplies.
    const STATES: &'static [&'static str];
    /// The gates (pre-activations), at most 32, in order: first gates with recurrent input only,
    /// then gates with both inputs, then gates with external input only. At least the first gate
    /// takes recurrent input.
    const GATES: &'static [Gate];
    /// The indices of states that the backward pass needs in full precision even if tensors are
    /// 16-bit.
    const WIDE: &'static [usize] = &[];
    /// The indices of gates that the backward pass needs in full precision even if tensors are
    /// 16-bit, such as gates whose rounding error an exponential would amplify.
    const WIDE_GATES: &'static [usize] = &[];
    /// The indices of states that every gradient treats as constants: incoming gradients for them
    /// are ignored, and the gradients returned for them are 0.
    const CONSTANT: &'static [usize] = &[];

    /// Whether the cell is one of this crate's, for which a backend may hold precompiled code.
    /// Other cells keep the default.
    #[doc(hidden)]
    const BUILT_IN: bool = false;

    /// The states of one unit.
    type State<R: Real>: Array<R>;
    /// The gates of one unit.
    type Gates<R: Real>: Array<R>;

    /// Computes `P`: the states after a step, from the states before it and the gates.
    fn forward<R: Real>(&self, state: Self::State<R>, gates: Self::Gates<R>) -> Self::State<R>;

    /// Computes the vector-Jacobian product of `P`: the gradients of the states before the step and
    /// of the gates, from the gradient `d` of the states after it. Derived from
    /// [`forward`](Cell::forward) unless overridden.
    ///
    /// Put factors that do not depend on `d` in parentheses, as in `d * (a * b)`: GPU kernels
    /// compute them before `d` is available.
    #[inline(always)]
    fn backward<R: Real>(
        &self,
        state: Self::State<R>,
        gates: Self::Gates<R>,
        d: Self::State<R>,
    ) -> (Self::State<R>, Self::Gates<R>) {
        derived_backward(self, state, gates, d)
    }
}

/// Computes [`Cell::backward`] from [`Cell::forward`] alone, by one forward-mode pass per state and
/// gate.
///
/// All passes compute the same values, apart from their tangents; a compiler or the tracer merges
/// them.
#[inline(always)]
pub fn derived_backward<C: Cell, R: Real>(
    cell: &C,
    state: C::State<R>,
    gates: C::Gates<R>,
    d: C::State<R>,
) -> (C::State<R>, C::Gates<R>) {
    let zero = R::lit(0.0);
    let mut dual_state = C::State::<Dual<R>>::splat(Dual::constant(zero));
    for (dual, &s) in dual_state.as_mut().iter_mut().zip(state.as_ref()) {
        *dual = Dual::constant(s);
    }
    let mut dual_gates = C::Gates::<Dual<R>>::splat(Dual::constant(zero));
    for (dual, &g) in dual_gates.as_mut().iter_mut().zip(gates.as_ref()) {
        *dual = Dual::constant(g);
    }
    let mut d_state = C::State::<R>::splat(zero);
    for (k, d_before) in d_state.as_mut().iter_mut().enumerate() {
        let mut varied = dual_state;
        varied.as_mut()[k] = Dual::variable(state.as_ref()[k]);
        *d_before = directional::<C, R>(d, cell.forward(varied, dual_gates));
    }
    let mut d_gates = C::Gates::<R>::splat(zero);
    for (k, d_gate) in d_gates.as_mut().iter_mut().enumerate() {
        let mut varied = dual_gates;
        varied.as_mut()[k] = Dual::variable(gates.as_ref()[k]);
        *d_gate = directional::<C, R>(d, cell.forward(dual_state, varied));
    }
    (d_state, d_gates)
}

/// Returns the directional derivative of a loss: the dot product of its gradient `d` with the
/// tangents of the states after a step.
#[inline(always)]
fn directional<C: Cell, R: Real>(d: C::State<R>, after: C::State<Dual<R>>) -> R {
    let (after, d) = (after.as_ref(), d.as_ref());
    let mut sum = d[0] * after[0].tangent;
    for k in 1..d.len() {
        sum = sum + d[k] * after[k].tangent;
    }
    sum
}
