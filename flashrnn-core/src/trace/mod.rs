//! Traces a cell into a graph, differentiates it, and prints it as source code for GPUs.
//!
//! A [`Cell`] is generic over its number. Run on [`Expr`], a handle into a [`Graph`], it records
//! its operations there, merging equal ones. [`Function`] keeps the operations that its outputs
//! depend on, and can be evaluated on any [`Real`]. [`mod@print`] turns functions into source code.
//!
//! [`forward`] is the trace of [`Cell::forward`]. [`backward`] is the trace of [`Cell::backward`]
//! if the cell overrides it. Otherwise the forward graph is differentiated in reverse mode, in one
//! pass however many states and gates there are, where [`derived_backward`] needs one forward-mode
//! pass for each. (In the rare case that the forward-mode trace is no longer than the reverse one,
//! it is used instead.) The two modes agree up to rounding, with one exception: forward mode also
//! sums tangents that are identically 0, each multiplied by a slope, and yields NaN if such a slope
//! is infinite or NaN. Reverse mode skips them.
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

/// Traces `P`. The inputs are the states before a step and the gates, and the outputs are the
/// states after the step, named as in [`Cell::STATES`] and [`Cell::GATES`].
pub fn forward<C: Cell>(cell: &C) -> Function {
    let graph = Graph::new();
    let state = inputs::<C::State<Expr>>(&graph, C::STATES, "");
    let gates = inputs::<C::Gates<Expr>>(&graph, &gate_names::<C>(), "");
    let after = cell.forward(state, gates);
    Function::new(&graph, named(C::STATES, "", after.as_ref()))
}

/// Traces the vector-Jacobian product of `P`. The inputs are the states before a step, the gates,
/// and the gradients of the states after the step. The outputs are the gradients of the states
/// before the step and of the gates. The name of a gradient is the name of its state or gate,
/// prefixed with `d_`.
///
/// Incoming gradients of [`Cell::CONSTANT`] states are ignored, and the gradients returned for them
/// are 0, whatever the cell's `backward` does.
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

/// Computes what [`derived_backward`] does, but in reverse mode.
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
    let (states, gates) = gradients.split_at(d_state.as_ref().len());
    d_state.as_mut().copy_from_slice(states);
    d_gates.as_mut().copy_from_slice(gates);
    (d_state, d_gates)
}

/// Sets the gradients of [`Cell::CONSTANT`] states to 0.
fn hold_constant<C: Cell>(d: &mut [Expr<'_>]) {
    for (k, d) in d.iter_mut().enumerate() {
        if C::CONSTANT.contains(&k) {
            *d = Expr::lit(0.0);
        }
    }
}

/// Returns the names of a cell's gates.
pub(crate) fn gate_names<C: Cell>() -> Vec<&'static str> {
    C::GATES.iter().map(Gate::name).collect()
}

/// Adds an input to the graph for each element of the array `A`.
fn inputs<'g, A: Array<Expr<'g>>>(graph: &'g Graph, names: &[&str], prefix: &str) -> A {
    let mut array = A::splat(Expr::lit(0.0));
    for (k, x) in array.as_mut().iter_mut().enumerate() {
        *x = graph.input(name(names, prefix, k));
    }
    array
}

/// Pairs each number with its name.
fn named<'g>(names: &[&str], prefix: &str, numbers: &[Expr<'g>]) -> Vec<(String, Expr<'g>)> {
    numbers.iter().enumerate().map(|(k, &x)| (name(names, prefix, k), x)).collect()
}

/// Returns the name of element `k`, or the prefix alone if the cell does not name it.
fn name(names: &[&str], prefix: &str, k: usize) -> String {
    format!("{prefix}{}", names.get(k).unwrap_or(&""))
}
