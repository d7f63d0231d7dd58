//! The sizes of a cell, checked at compile time.

use crate::cell::{Array, Cell};

/// Provides the numbers of a cell's states and gates. Implemented for every [`Cell`].
///
/// Using one of them checks the cell's constants at compile time: there is one name per state and
/// gate, the gates are in the order required by [`Cell::GATES`], indices are in range and distinct,
/// and there are at most 32 states and 32 gates, because GPU kernels hold them in bit sets of 32
/// bits.
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
///
/// ```compile_fail,E0080
/// use flashrnn_core::{Cell, CellSizes, Gate, Real};
///
/// #[derive(Clone)]
/// struct TooMany;
///
/// impl Cell for TooMany {
///     const NAME: &'static str = "too_many";
///     const STATES: &'static [&'static str] = &["h"];
///     const GATES: &'static [Gate] = &[Gate::both("g"); 33];
///     type State<R: Real> = [R; 1];
///     type Gates<R: Real> = [R; 33];
///     fn forward<R: Real>(&self, state: [R; 1], _: [R; 33]) -> [R; 1] {
///         state
///     }
/// }
/// println!("{}", TooMany::S);
/// ```
pub trait CellSizes: Cell {
    /// The number of states.
    const S: usize;
    /// The number of gates.
    const G: usize;
    /// The number of gates with recurrent input. They come first.
    const GR: usize;
    /// The number of gates with external input. They come last.
    const GX: usize;
}

impl<C: Cell> CellSizes for C {
    const S: usize = Checked::<C>::SIZES[0];
    const G: usize = Checked::<C>::SIZES[1];
    const GR: usize = Checked::<C>::SIZES[2];
    const GX: usize = Checked::<C>::SIZES[3];
}

/// Holds the sizes of the cell `C`, whose constants are checked when they are first used.
struct Checked<C>(std::marker::PhantomData<C>);

impl<C: Cell> Checked<C> {
    const SIZES: [usize; 4] = sizes::<C>();
}

/// Checks a cell's constants and returns its sizes S, G, Gr, Gx.
const fn sizes<C: Cell>() -> [usize; 4] {
    let (states, gates) = (<C::State<f64> as Array<f64>>::LEN, <C::Gates<f64> as Array<f64>>::LEN);
    assert!(states >= 1, "a cell has at least one state, h");
    assert!(states <= 32 && gates <= 32, "a cell has at most 32 states and 32 gates");
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

/// Returns whether all of `indices` are below `end` and no two are equal.
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
