//! A cell as CUDA C++: the struct that kernels take as their pointwise function.

use super::{Language, Parameter, comment, statements};
use crate::trace::{Function, backward, forward, gate_names};
use crate::{Cell, CellSizes};

/// The text of `struct Cell`: the sizes of `cell`, and its forward and backward function in f32.
///
/// Functions and constants that C++ lacks are called in a namespace `real`, which the kernels
/// define. A state's or gate's index in a bit set is its bit; more than 32 states or gates don't
/// compile. Equal texts are equal cells: a cell's parameters are literals in the text, exact in
/// f32.
pub fn cell<C: Cell>(cell: &C) -> String {
    let (states, gates) = (C::S, C::G);
    let gate_names = gate_names::<C>();
    let (recurrent, external) = (C::GR, C::GX);
    let list = |names: &[&str]| comment(&names.join(", "));
    let bits = |indices: &[usize]| {
        let set = indices
            .iter()
            .filter_map(|&k| 1u32.checked_shl(k as u32))
            .fold(0, |set, bit| set | bit);
        format!("{set:#x}")
    };
    let of_state = |array| Parameter { array, len: states, elements: C::STATES };
    let of_gates = |array| Parameter { array, len: gates, elements: &gate_names };
    let (linearize, transposed) = backward(cell).split(states + gates);
    let residuals: Vec<&str> = linearize.outputs().iter().map(|(name, _)| name.as_str()).collect();
    let of_residuals = Parameter { array: "residuals", len: residuals.len(), elements: &residuals };
    // No array is empty in C++.
    let residuals = residuals.len().max(1);
    format!(
        "\
// Cell `{name}`, printed from its Rust definition.
struct Cell {{
    static constexpr int STATES = {states}, GATES = {gates}, RECURRENT = {recurrent}, EXTERNAL = {external};
    // states: {state_names}; gates: {gate_names}
    static_assert(STATES <= 32 && GATES <= 32, \"a bit set holds 32\");
    // Bit sets of states, gates and states.
    static constexpr unsigned WIDE = {wide}, WIDE_GATES = {wide_gates}, CONSTANT = {constant};
    // s_t = P(s_(t-1), g_t)
    static __device__ __forceinline__ void forward(const float (&s)[{states}], const float (&g)[{gates}], \
         float (&next)[{states}]) {{
{forward}    }}
    // What backward needs of s_(t-1) and g_t.
    static constexpr int RESIDUALS = {residuals};
    static __device__ __forceinline__ void linearize(const float (&s)[{states}], const float (&g)[{gates}], \
         float (&residuals)[{residuals}]) {{
{linearize}    }}
    // The gradients ds of s_(t-1) and dg of g_t, from the gradient d of s_t.
    static __device__ __forceinline__ void backward(const float (&residuals)[{residuals}], const float (&d)[{states}], \
         float (&ds)[{states}], float (&dg)[{gates}]) {{
{backward}    }}
}};
",
        name = comment(C::NAME),
        state_names = list(C::STATES),
        gate_names = list(&gate_names),
        wide = bits(C::WIDE),
        wide_gates = bits(C::WIDE_GATES),
        constant = bits(C::CONSTANT),
        forward = body(&forward(cell), &[of_state("s"), of_gates("g")], &[of_state("next")]),
        linearize = body(&linearize, &[of_state("s"), of_gates("g")], &[of_residuals]),
        backward = body(&transposed, &[of_residuals, of_state("d")], &[of_state("ds"), of_gates("dg")]),
    )
}

/// The indented lines of a function.
fn body(function: &Function, inputs: &[Parameter], outputs: &[Parameter]) -> String {
    statements::<Cuda>(function, inputs, outputs)
        .into_iter()
        .map(|line| format!("        {line}\n"))
        .collect()
}

struct Cuda;

impl Language for Cuda {
    fn literal(v: f64) -> String {
        match v as f32 {
            v if v.is_nan() => "real::nan()".into(),
            f32::INFINITY => "real::inf()".into(),
            f32::NEG_INFINITY => "-real::inf()".into(),
            // The shortest decimal that reads back as v, always with a point or an exponent.
            v => format!("{v:?}f"),
        }
    }

    fn local(mask: bool, name: &str, value: &str) -> String {
        format!("const {} {name} = {value};", if mask { "bool" } else { "float" })
    }

    fn call(function: &str, operands: &[&str]) -> String {
        format!("real::{function}({})", operands.join(", "))
    }

    fn select(mask: &str, a: &str, b: &str) -> String {
        format!("{mask} ? {a} : {b}")
    }
}
