//! Prints a cell as WGSL: the functions that compute shaders call as their pointwise function.

use super::{Language, Parameter, bit_set, body, comment, list};
use crate::trace::{backward, forward, gate_names};
use crate::{Cell, CellSizes};

/// Prints [`sizes`] and [`functions`] of `cell`.
pub fn cell<C: Cell>(cell: &C) -> String {
    format!("{}\n{}", sizes::<C>(), functions(cell))
}

/// Prints the sizes of a cell as constants. Bit k of a bit set represents state or gate k.
pub fn sizes<C: Cell>() -> String {
    format!(
        "\
const STATES = {states}u;
const GATES = {gates}u;
const RECURRENT = {recurrent}u;
const EXTERNAL = {external}u;
// WIDE and CONSTANT are bit sets of states; WIDE_GATES is one of gates.
const WIDE = {wide}u;
const WIDE_GATES = {wide_gates}u;
const CONSTANT = {constant}u;
",
        states = C::S,
        gates = C::G,
        recurrent = C::GR,
        external = C::GX,
        wide = bit_set(C::WIDE),
        wide_gates = bit_set(C::WIDE_GATES),
        constant = bit_set(C::CONSTANT),
    )
}

/// Prints the functions `cell_forward` and `cell_backward` of `cell`, in f32.
///
/// Functions and constants that WGSL lacks have names that begin with `real_`, and are defined by
/// the shaders. Cells with equal text are equal, since a cell's parameters appear in the text as
/// literals, exact in f32.
pub fn functions<C: Cell>(cell: &C) -> String {
    let (s, g) = (Parameter::states::<C>("s"), Parameter::gates::<C>("g"));
    format!(
        "\
// Cell `{name}`, printed from its Rust definition.
// states: {state_names}; gates: {gate_names}

// s_t = P(s_(t-1), g_t)
fn cell_forward(s: array<f32, {states}>, g: array<f32, {gates}>) -> array<f32, {states}> {{
    var next: array<f32, {states}>;
{forward}    return next;
}}

struct CellGradients {{
    ds: array<f32, {states}>,
    dg: array<f32, {gates}>,
}}

// The gradients ds of s_(t-1) and dg of g_t, from the gradient d of s_t.
fn cell_backward(s: array<f32, {states}>, g: array<f32, {gates}>, d: array<f32, {states}>) \
         -> CellGradients {{
    var ds: array<f32, {states}>;
    var dg: array<f32, {gates}>;
{backward}    return CellGradients(ds, dg);
}}
",
        states = C::S,
        gates = C::G,
        name = comment(C::NAME),
        state_names = list(C::STATES),
        gate_names = list(&gate_names::<C>()),
        forward = body::<Wgsl>(
            &forward(cell),
            &[s.clone(), g.clone()],
            &[Parameter::states::<C>("next")],
        ),
        backward = body::<Wgsl>(
            &backward(cell),
            &[s, g, Parameter::states::<C>("d")],
            &[Parameter::states::<C>("ds"), Parameter::gates::<C>("dg")],
        ),
    )
}

struct Wgsl;

impl Language for Wgsl {
    const INDENT: &'static str = "    ";
    // WGSL has no literals for NaN and infinities, and rejects constant expressions that evaluate
    // to them.
    const NAN: &'static str = "real_nan()";
    const INFINITY: &'static str = "real_inf()";

    fn local(mask: bool, name: &str, value: &str) -> String {
        format!("let {name}: {} = {value};", if mask { "bool" } else { "f32" })
    }

    fn call(function: &str, operands: &[&str]) -> String {
        format!("real_{function}({})", operands.join(", "))
    }

    fn select(mask: &str, a: &str, b: &str) -> String {
        format!("select({b}, {a}, {mask})")
    }

    // WGSL does not define the accuracy of `/` for divisors above 2^126.
    fn quotient(a: &str, b: &str) -> String {
        Self::call("quotient", &[a, b])
    }
}
