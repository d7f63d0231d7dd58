//! A cell as a graph: traced by running it, differentiated, and printed as source code for GPUs.
//!
//! A [`Cell`] is generic over its number. Run with [`Expr`], a handle into a [`Graph`], it leaves
//! behind the operations it did, each once; [`Function`] keeps those that its outputs need, and can
//! be interpreted with any number. [`mod@print`] turns functions into source code.
//!
//! [`forward`] is the trace of [`Cell::forward`]. [`backward`] is the trace of [`Cell::backward`]
//! where the cell overrides it. Where it does not, the graph is differentiated in reverse: one pass
//! over the forward operations, whatever the number of states and gates, where [`derived_backward`]
//! makes one forward-mode pass for each. (In the rare case that forward mode takes no more
//! operations, its trace is used.) The two agree but for rounding, and for one thing that reverse
//! mode leaves out: forward mode also adds up the tangents that are always 0, each times a slope,
//! and is NaN where such a slope is infinite or NaN.
//!
//! ```
//! use flashrnn_core::{Lstm, trace};
//!
//! let forward = trace::forward(&Lstm);
//! assert_eq!(forward.inputs(), ["h", "c", "i", "f", "z", "o"]);
//! let after = forward.eval(&[0.0, 0.5, 1.0, -1.0, 0.3, 2.0]);
//! assert_eq!(after.len(), 2);
//! println!("{}", trace::print::cuda::cell(&Lstm));
//! ```

mod expr;
mod function;
mod op;
pub mod print;
mod reverse;

pub use expr::{Expr, Graph, Mask};
pub use function::Function;
pub use op::{Binary, Id, Op, Unary};

use crate::cell::Array;
use crate::{Cell, Gate, Real, derived_backward};

/// `P`, from the states before a step and the gates to the states after it, named as in
/// [`Cell::STATES`] and [`Cell::GATES`].
pub fn forward<C: Cell>(cell: &C) -> Function {
    let graph = Graph::new();
    let state = inputs::<C::State<Expr>>(&graph, C::STATES, "");
    let gates = inputs::<C::Gates<Expr>>(&graph, &gate_names::<C>(), "");
    let after = cell.forward(state, gates);
    Function::new(&graph, named(C::STATES, "", after.as_ref()))
}

/// The transposed derivative of `P`: from the states before a step, the gates and the gradients of
/// the states after the step (named `d_` and the state's name), to the gradients of the states
/// before it and of the gates (`d_` and the name).
///
/// Gradients given for [`Cell::CONSTANT`] states are ignored, and theirs are 0, whatever the cell's
/// own `backward` does.
pub fn backward<C: Cell>(cell: &C) -> Function {
    let graph = Graph::new();
    let state = inputs::<C::State<Expr>>(&graph, C::STATES, "");
    let gates = inputs::<C::Gates<Expr>>(&graph, &gate_names::<C>(), "");
    let mut d = inputs::<C::State<Expr>>(&graph, C::STATES, "d_");
    hold_constant::<C>(d.as_mut());

    let written = cell.backward(state, gates, d);
    let derived = derived_backward(cell, state, gates, d);
    let overridden =
        written.0.as_ref() != derived.0.as_ref() || written.1.as_ref() != derived.1.as_ref();
    let function = |(mut d_state, d_gates): (C::State<_>, C::Gates<_>)| {
        hold_constant::<C>(d_state.as_mut());
        let d_state = named(C::STATES, "d_", d_state.as_ref());
        Function::new(
            &graph,
            d_state.into_iter().chain(named(&gate_names::<C>(), "d_", d_gates.as_ref())),
        )
    };
    let written = function(written);
    if overridden {
        return written;
    }
    let reverse = function(reverse_backward(&graph, cell, state, gates, d));
    if reverse.operations() < written.operations() { reverse } else { written }
}

/// [`derived_backward`], but in reverse mode.
fn reverse_backward<'g, C: Cell>(
    graph: &'g Graph,
    cell: &C,
    state: C::State<Expr<'g>>,
    gates: C::Gates<Expr<'g>>,
    d: C::State<Expr<'g>>,
) -> (C::State<Expr<'g>>, C::Gates<Expr<'g>>) {
    let after = cell.forward(state, gates);
    let outputs = after.as_ref().iter().copied().zip(d.as_ref().iter().copied());
    let inputs: Vec<Expr<'g>> = [state.as_ref(), gates.as_ref()].concat();
    let gradients = reverse::gradients(graph, &inputs, outputs);
    let (mut d_state, mut d_gates) = (state, gates);
    let (of_state, of_gates) = gradients.split_at(d_state.as_ref().len());
    d_state.as_mut().copy_from_slice(of_state);
    d_gates.as_mut().copy_from_slice(of_gates);
    (d_state, d_gates)
}

/// Sets what belongs to [`Cell::CONSTANT`] states to 0.
fn hold_constant<C: Cell>(d: &mut [Expr<'_>]) {
    for (k, d) in d.iter_mut().enumerate() {
        if C::CONSTANT.contains(&k) {
            *d = Expr::lit(0.0);
        }
    }
}

/// The names of a cell's gates.
pub(crate) fn gate_names<C: Cell>() -> Vec<&'static str> {
    C::GATES.iter().map(Gate::name).collect()
}

/// A new input for each element of the array `A`.
fn inputs<'g, A: Array<Expr<'g>>>(graph: &'g Graph, names: &[&str], prefix: &str) -> A {
    let mut array = A::splat(Expr::lit(0.0));
    for (k, x) in array.as_mut().iter_mut().enumerate() {
        *x = graph.input(name(names, prefix, k));
    }
    array
}

/// Each number with its name.
fn named<'g>(names: &[&str], prefix: &str, numbers: &[Expr<'g>]) -> Vec<(String, Expr<'g>)> {
    numbers.iter().enumerate().map(|(k, &x)| (name(names, prefix, k), x)).collect()
}

/// The name of element `k`, also where a cell names too few.
fn name(names: &[&str], prefix: &str, k: usize) -> String {
    format!("{prefix}{}", names.get(k).unwrap_or(&""))
}
