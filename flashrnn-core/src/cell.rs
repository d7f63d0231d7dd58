//! What a recurrent cell is: one pointwise function, written once.

use crate::{Dual, Real};

/// A fixed-length array of numbers: the states or the gates of one unit.
pub trait Array<R>: Copy + AsRef<[R]> + AsMut<[R]> {
    /// How many numbers it holds.
    const LEN: usize;
    /// An array of equal numbers, to be filled in a loop: a closure would stop the CPU backend's inlining.
    fn splat(v: R) -> Self;
}

impl<R: Copy, const LEN: usize> Array<R> for [R; LEN] {
    const LEN: usize = LEN;
    #[inline(always)]
    fn splat(v: R) -> Self {
        [v; LEN]
    }
}

/// A recurrent cell, `s_t = P(s_{t-1}, g_t)` with `g_t = R s⁰_{t-1} + x_t + b`, where `P` acts unit by unit.
///
/// The user writes [`forward`](Cell::forward), generic over the number it computes with; every backend and every
/// derivative comes from that one function. State 0 is h, the one that `R` reads. The first
/// [`RECURRENT`](Cell::RECURRENT) gates receive `R h`, the last [`EXTERNAL`](Cell::EXTERNAL) receive `x`, all
/// receive `b`; together they cover every gate.
///
/// Mark `forward` (and `backward`) `#[inline(always)]`: the CPU backend inlines them into its SIMD loops, and is
/// many times slower where it can't.
///
/// ```
/// use flashrnn_core::{Cell, Real};
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
///     const GATES: &'static [&'static str] = &["g"];
///     const RECURRENT: usize = 1;
///     const EXTERNAL: usize = 1;
///     type State<R: Real> = [R; 1];
///     type Gates<R: Real> = [R; 1];
///     #[inline(always)]
///     fn forward<R: Real>(&self, [h]: [R; 1], [g]: [R; 1]) -> [R; 1] {
///         [h + R::lit(self.a) * (g.tanh() - h)]
///     }
/// }
/// ```
pub trait Cell: Clone + Send + Sync + 'static {
    /// The name, in lower case, as the command line and kernel caches spell it.
    const NAME: &'static str;
    /// The names of the states, in order; the first is the one that `R` reads.
    const STATES: &'static [&'static str];
    /// The names of the gates (pre-activations), in order.
    const GATES: &'static [&'static str];
    /// How many gates take recurrent input: the first so many, `Gr`.
    const RECURRENT: usize;
    /// How many gates take external input: the last so many, `Gx`.
    const EXTERNAL: usize;
    /// The indices of states whose values the backward pass needs in full precision even where tensors are 16 bits.
    const WIDE: &'static [usize] = &[];
    /// The indices of gates of which the same is true: those whose rounding an exponential would blow up.
    const WIDE_GATES: &'static [usize] = &[];
    /// The indices of states that are held constant in every gradient: gradients given for them are ignored, and
    /// theirs are 0.
    const CONSTANT: &'static [usize] = &[];

    /// Whether this is one of this crate's cells, which a backend may have compiled ahead. Others leave it alone.
    #[doc(hidden)]
    const BUILT_IN: bool = false;

    /// The states of one unit.
    type State<R: Real>: Array<R>;
    /// The gates of one unit.
    type Gates<R: Real>: Array<R>;

    /// `P`: the states after a step, from the states before it and the gates.
    fn forward<R: Real>(&self, state: Self::State<R>, gates: Self::Gates<R>) -> Self::State<R>;

    /// The transposed derivative of `P`: from the gradient `d` of the states after the step, the gradients of the
    /// states before it and of the gates. Derived from [`forward`](Cell::forward) unless overridden.
    ///
    /// What does not depend on `d` belongs in parentheses of its own, as in `d * (a * b)`: GPU kernels compute it before `d` is
    /// there.
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

/// [`Cell::backward`] from [`Cell::forward`] alone, by one forward-mode pass for each state and gate.
///
/// The passes share all their values, so a compiler or a tracer computes those once.
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
        *d_before = against::<C, R>(d, cell.forward(varied, dual_gates));
    }
    let mut d_gates = C::Gates::<R>::splat(zero);
    for (k, d_gate) in d_gates.as_mut().iter_mut().enumerate() {
        let mut varied = dual_gates;
        varied.as_mut()[k] = Dual::variable(gates.as_ref()[k]);
        *d_gate = against::<C, R>(d, cell.forward(dual_state, varied));
    }
    (d_state, d_gates)
}

/// The change of a loss whose gradient is `d`, from the tangents of the states after a step.
#[inline(always)]
fn against<C: Cell, R: Real>(d: C::State<R>, after: C::State<Dual<R>>) -> R {
    let (after, d) = (after.as_ref(), d.as_ref());
    let mut sum = d[0] * after[0].tangent;
    for k in 1..d.len() {
        sum = sum + d[k] * after[k].tangent;
    }
    sum
}
