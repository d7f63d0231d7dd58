//! A cell as WGSL: the functions that compute shaders call as their pointwise function.

use super::{Language, Parameter, comment, statements};
use crate::trace::{Function, backward, forward, gate_names};
use crate::{Cell, CellSizes};

/// [`sizes`] and [`functions`] of `cell`.
pub fn cell<C: Cell>(cell: &C) -> String {
    format!("{}\n{}", sizes::<C>(), functions(cell))
}

/// The sizes of a cell as constants. A state's or gate's index in a bit set is its bit.
pub fn sizes<C: Cell>() -> String {
    let bits = |indices: &[usize]| {
        let set = indices
            .iter()
            .filter_map(|&k| 1u32.checked_shl(k as u32))
            .fold(0, |set, bit| set | bit);
        format!("{set:#x}u")
    };
    format!(
        "\
const STATES = {states}u;
const GATES = {gates}u;
const RECURRENT = {recurrent}u;
const EXTERNAL = {external}u;
// Bit sets of states, gates and states.
const WIDE = {wide};
const WIDE_GATES = {wide_gates};
const CONSTANT = {constant};
",
        states = C::S,
        gates = C::G,
        recurrent = C::GR,
        external = C::GX,
        wide = bits(C::WIDE),
        wide_gates = bits(C::WIDE_GATES),
        constant = bits(C::CONSTANT),
    )
}

/// The functions `cell_forward` and `cell_backward` of `cell`, in f32.
///
/// Functions and constants that WGSL lacks are called by names that begin with `real_`, which the
/// shaders define. Equal texts are equal cells: a cell's parameters are literals in the text, exact
/// in f32.
pub fn functions<C: Cell>(cell: &C) -> String {
    let (states, gates) = (C::S, C::G);
    let gate_names = gate_names::<C>();
    let list = |names: &[&str]| comment(&names.join(", "));
    let of_state = |array| Parameter { array, len: states, elements: C::STATES };
    let of_gates = |array| Parameter { array, len: gates, elements: &gate_names };
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
fn cell_backward(s: array<f32, {states}>, g: array<f32, {gates}>, d: array<f32, {states}>) -> CellGradients {{
    var ds: array<f32, {states}>;
    var dg: array<f32, {gates}>;
{backward}    return CellGradients(ds, dg);
}}
",
        name = comment(C::NAME),
        state_names = list(C::STATES),
        gate_names = list(&gate_names),
        forward = body(&forward(cell), &[of_state("s"), of_gates("g")], &[of_state("next")]),
        backward = body(
            &backward(cell),
            &[of_state("s"), of_gates("g"), of_state("d")],
            &[of_state("ds"), of_gates("dg")],
        ),
    )
}

/// The indented lines of a function.
fn body(function: &Function, inputs: &[Parameter], outputs: &[Parameter]) -> String {
    statements::<Wgsl>(function, inputs, outputs)
        .into_iter()
        .map(|line| format!("    {line}\n"))
        .collect()
}

struct Wgsl;

impl Language for Wgsl {
    fn literal(v: f64) -> String {
        match v as f32 {
            // WGSL has no literals for these, and refuses constant expressions that give them.
            v if v.is_nan() => "real_nan()".into(),
            f32::INFINITY => "real_inf()".into(),
            f32::NEG_INFINITY => "-real_inf()".into(),
            // The shortest decimal that reads back as v, always with a point or an exponent.
            v => format!("{v:?}f"),
        }
    }

    fn local(mask: bool, name: &str, value: &str) -> String {
        format!("let {name}: {} = {value};", if mask { "bool" } else { "f32" })
    }

    fn call(function: &str, operands: &[&str]) -> String {
        format!("real_{function}({})", operands.join(", "))
    }

    fn select(mask: &str, a: &str, b: &str) -> String {
        format!("select({b}, {a}, {mask})")
    }

    // WGSL's own is exact only where the divisor is not above 2^126.
    fn quotient(a: &str, b: &str) -> String {
        Self::call("quotient", &[a, b])
    }
}
