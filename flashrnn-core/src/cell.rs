//! What a recurrent cell is: one pointwise function, written once.

use crate::{Dual, Real};

mod sealed {
    pub trait Sealed {}
    impl<R, const LEN: usize> Sealed for [R; LEN] {}
}

/// A fixed-length array of numbers: the states or the gates of one unit. Implemented by `[R; LEN]`
/// alone, so that kernels can rely on its length.
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
    /// How many numbers it holds.
    const LEN: usize;
    /// Makes an array of equal numbers, to be filled in a loop: a closure would stop the CPU
    /// backend's inlining.
    fn splat(v: R) -> Self;
}

impl<R: Copy, const LEN: usize> Array<R> for [R; LEN] {
    const LEN: usize = LEN;
    #[inline(always)]
    fn splat(v: R) -> Self {
        [v; LEN]
    }
}

/// A gate (pre-activation) of a cell: its name, and which inputs it takes besides the bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    name: &'static str,
    recurrent: bool,
    external: bool,
}

impl Gate {
    /// Declares a gate that takes `R h` and no external input, such as GRU's `n_h`.
    #[must_use]
    pub const fn recurrent(name: &'static str) -> Self {
        Self { name, recurrent: true, external: false }
    }

    /// Declares a gate that takes both `R h` and external input.
    #[must_use]
    pub const fn both(name: &'static str) -> Self {
        Self { name, recurrent: true, external: true }
    }

    /// Declares a gate that takes external input and no `R h`, such as GRU's `n_x`. Where a caller
    /// gives no external input for it (zeros), its value is its bias: that is how a cell gets
    /// trainable parameters of its own.
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

/// A recurrent cell, `s_t = P(s_{t-1}, g_t)` with `g_t = R s⁰_{t-1} + x_t + b`, where `P` acts unit
/// by unit.
///
/// The user writes [`forward`](Cell::forward), generic over the number it computes with; every
/// backend and every derivative comes from that one function. State 0 is h, the one that `R` reads.
/// Every gate receives its bias `b`; which ones receive `R h` and `x` is declared in
/// [`GATES`](Cell::GATES).
///
/// Mark `forward` (and `backward`) `#[inline(always)]`: the CPU backend inlines them into its SIMD
/// loops, and is many times slower where it can't.
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
/// # Parameters of a cell's own
/// A number that is the same for every unit and is not trained is a field of the cell, as `a`
/// above. A parameter that is trained, one a unit, is the bias of a gate with [`Gate::external`]:
/// give zeros as its external input, and the gate's value is the bias, whose gradient is in `d_b`.
/// To keep it within a range, apply a function to it in `forward` (`a.sigmoid()`).
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
/// A cell computes with [`Real`]: constants are `R::lit(1.0)`, and it branches only by [`Real::gt`]
/// and [`Real::select`]. `P` acts unit by unit and is deterministic: a layer norm inside the step
/// (it needs all units), a projection of h (R reads h itself), peepholes across units, and random
/// numbers (dropout inside the step) can't be written as a cell.
///
/// # What is checked
/// A cell whose constants contradict each other does not compile: see [`CellSizes`].
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
    /// The name, in lower case, as the command line and kernel caches spell it.
    const NAME: &'static str;
    /// The names of the states, in order; the first is the one that `R` reads.
    const STATES: &'static [&'static str];
    /// The gates (pre-activations), in order: first those with recurrent input only, then those
    /// with both, then those with external input only. The first, at least, takes recurrent input.
    const GATES: &'static [Gate];
    /// The indices of states whose values the backward pass needs in full precision even where
    /// tensors are 16 bits.
    const WIDE: &'static [usize] = &[];
    /// The indices of gates of which the same is true: those whose rounding an exponential would
    /// blow up.
    const WIDE_GATES: &'static [usize] = &[];
    /// The indices of states that are held constant in every gradient: gradients given for them are
    /// ignored, and theirs are 0.
    const CONSTANT: &'static [usize] = &[];

    /// Whether this is one of this crate's cells, which a backend may have compiled ahead. Others
    /// leave it alone.
    #[doc(hidden)]
    const BUILT_IN: bool = false;

    /// The states of one unit.
    type State<R: Real>: Array<R>;
    /// The gates of one unit.
    type Gates<R: Real>: Array<R>;

    /// `P`: the states after a step, from the states before it and the gates.
    fn forward<R: Real>(&self, state: Self::State<R>, gates: Self::Gates<R>) -> Self::State<R>;

    /// The transposed derivative of `P`: from the gradient `d` of the states after the step, the
    /// gradients of the states before it and of the gates. Derived from [`forward`](Cell::forward)
    /// unless overridden.
    ///
    /// What does not depend on `d` belongs in parentheses of its own, as in `d * (a * b)`: GPU
    /// kernels compute it before `d` is there.
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

/// The numbers of a cell's states and gates. Every [`Cell`] has them, and using one checks the
/// cell's constants when the program is compiled: as many names as states and gates, gates in the
/// order that [`Cell::GATES`] asks for, and indices in range and given once.
///
/// ```compile_fail,E0080
/// use flashrnn_core::{Cell, CellSizes, Gate, Real};
///
/// #[derive(Clone)]
/// struct Liar;
///
/// impl Cell for Liar {
///     const NAME: &'static str = "liar";
///     const STATES: &'static [&'static str] = &["h"];
///     const GATES: &'static [Gate] = &[Gate::both("g")];
///     const WIDE: &'static [usize] = &[0, 0];
///     type State<R: Real> = [R; 1];
///     type Gates<R: Real> = [R; 1];
///     fn forward<R: Real>(&self, state: [R; 1], _: [R; 1]) -> [R; 1] {
///         state
///     }
/// }
/// println!("{}", Liar::S);
/// ```
pub trait CellSizes: Cell {
    /// The number of states.
    const S: usize;
    /// The number of gates.
    const G: usize;
    /// How many gates take recurrent input: the first ones.
    const GR: usize;
    /// How many gates take external input: the last ones.
    const GX: usize;
}

impl<C: Cell> CellSizes for C {
    const S: usize = Checked::<C>::SIZES[0];
    const G: usize = Checked::<C>::SIZES[1];
    const GR: usize = Checked::<C>::SIZES[2];
    const GX: usize = Checked::<C>::SIZES[3];
}

/// A cell's constants, checked once.
struct Checked<C>(std::marker::PhantomData<C>);

impl<C: Cell> Checked<C> {
    const SIZES: [usize; 4] = sizes::<C>();
}

/// Checks a cell's constants and returns its sizes S, G, Gr, Gx.
const fn sizes<C: Cell>() -> [usize; 4] {
    let (states, gates) = (<C::State<f64> as Array<f64>>::LEN, <C::Gates<f64> as Array<f64>>::LEN);
    assert!(states >= 1, "a cell has at least one state, h");
    assert!(C::STATES.len() == states, "Cell::STATES must name every state");
    assert!(C::GATES.len() == gates, "Cell::GATES must declare every gate");
    let (mut recurrent, mut external, mut k) = (0, 0, 0);
    while k < gates {
        let gate = C::GATES[k];
        assert!(
            !gate.recurrent || recurrent == k,
            "gates with recurrent input come first in Cell::GATES"
        );
        assert!(
            gate.external || external == 0,
            "gates with external input come last in Cell::GATES"
        );
        recurrent += gate.recurrent as usize;
        external += gate.external as usize;
        k += 1;
    }
    assert!(recurrent >= 1, "at least one gate in Cell::GATES takes recurrent input");
    assert!(distinct_below(C::WIDE, states), "Cell::WIDE holds indices of states, each once");
    assert!(
        distinct_below(C::CONSTANT, states),
        "Cell::CONSTANT holds indices of states, each once"
    );
    assert!(
        distinct_below(C::WIDE_GATES, gates),
        "Cell::WIDE_GATES holds indices of gates, each once"
    );
    [states, gates, recurrent, external]
}

/// Whether all of `indices` are below `end` and no two are equal.
const fn distinct_below(indices: &[usize], end: usize) -> bool {
    let mut i = 0;
    while i < indices.len() {
        let mut j = 0;
        while j < i {
            if indices[j] == indices[i] {
                return false;
            }
            j += 1;
        }
        if indices[i] >= end {
            return false;
        }
        i += 1;
    }
    true
}

/// [`Cell::backward`] from [`Cell::forward`] alone, by one forward-mode pass for each state and
/// gate.
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
