//! What a recurrent cell is: one pointwise function, written once.

use crate::{Dual, Real};

/// A fixed-length array of numbers: the states or the gates of one unit.
pub trait Array<R>: Copy + AsRef<[R]> + AsMut<[R]> {
    /// How many numbers it holds.
    const LEN: usize;
    /// Builds it from a function of the index.
    fn from_fn(f: impl FnMut(usize) -> R) -> Self;
}

impl<R: Copy, const LEN: usize> Array<R> for [R; LEN] {
    const LEN: usize = LEN;
    #[inline(always)]
    fn from_fn(f: impl FnMut(usize) -> R) -> Self {
        std::array::from_fn(f)
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
    /// The indices of states that are held constant in every gradient: gradients given for them are ignored, and
    /// theirs are 0.
    const CONSTANT: &'static [usize] = &[];

    /// The states of one unit.
    type State<R: Real>: Array<R>;
    /// The gates of one unit.
    type Gates<R: Real>: Array<R>;

    /// `P`: the states after a step, from the states before it and the gates.
    fn forward<R: Real>(&self, state: Self::State<R>, gates: Self::Gates<R>) -> Self::State<R>;

    /// The transposed derivative of `P`: from the gradient `d` of the states after the step, the gradients of the
    /// states before it and of the gates. Derived from [`forward`](Cell::forward) unless overridden.
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
    let against = |after: C::State<Dual<R>>| {
        let (after, d) = (after.as_ref(), d.as_ref());
        let mut sum = d[0] * after[0].tangent;
        for k in 1..d.len() {
            sum = sum + d[k] * after[k].tangent;
        }
        sum
    };
    let constant_state = C::State::<Dual<R>>::from_fn(|k| Dual::constant(state.as_ref()[k]));
    let constant_gates = C::Gates::<Dual<R>>::from_fn(|k| Dual::constant(gates.as_ref()[k]));
    let d_state = C::State::<R>::from_fn(|k| {
        let mut s = constant_state;
        s.as_mut()[k] = Dual::variable(state.as_ref()[k]);
        against(cell.forward(s, constant_gates))
    });
    let d_gates = C::Gates::<R>::from_fn(|k| {
        let mut g = constant_gates;
        g.as_mut()[k] = Dual::variable(gates.as_ref()[k]);
        against(cell.forward(constant_state, g))
    });
    (d_state, d_gates)
}
