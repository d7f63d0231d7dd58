//! Prints a cell as CUDA C++: the struct that kernels take as their pointwise function.

use super::{Language, Parameter, bit_set, body, comment, list};
use crate::trace::{backward, forward, gate_names};
use crate::{Cell, CellSizes};

/// Prints `struct Cell`: the sizes of `cell`, and its forward and backward functions in f32.
///
/// Functions and constants that C++ lacks are in the namespace `real`, which the kernels define.
/// Bit k of a bit set represents state or gate k. Cells with equal text are equal, since a cell's
/// parameters appear in the text as literals, exact in f32.
pub fn cell<C: Cell>(cell: &C) -> String {
    let (states, gates) = (C::S, C::G);
    let (linearize, transposed) = backward(cell).split(states + gates);
    let (s, g) = (Parameter::states::<C>("s"), Parameter::gates::<C>("g"));
    let elements = linearize.outputs().iter().map(|(name, _)| name.as_str()).collect();
    let residual_array = Parameter { array: "residuals", elements };
    // C++ has no empty arrays.
    let residuals = residual_array.elements.len().max(1);
    format!(
        "\
// Cell `{name}`, printed from its Rust definition.
struct Cell {{
    static constexpr int STATES = {states}, GATES = {gates}, RECURRENT = {recurrent}, \
         EXTERNAL = {external};
    // states: {state_names}; gates: {gate_names}
    static_assert(STATES <= 32 && GATES <= 32, \"a bit set holds 32\");
    // WIDE and CONSTANT are bit sets of states; WIDE_GATES is one of gates.
    static constexpr unsigned WIDE = {wide}, WIDE_GATES = {wide_gates}, CONSTANT = {constant};
    // s_t = P(s_(t-1), g_t)
    static __device__ __forceinline__ void forward(const float (&s)[{states}], \
         const float (&g)[{gates}], float (&next)[{states}]) {{
{forward}    }}
    // What backward needs of s_(t-1) and g_t.
    static constexpr int RESIDUALS = {residuals};
    static __device__ __forceinline__ void linearize(const float (&s)[{states}], \
         const float (&g)[{gates}], float (&residuals)[{residuals}]) {{
{linearize}    }}
    // The gradients ds of s_(t-1) and dg of g_t, from the gradient d of s_t.
    static __device__ __forceinline__ void backward(const float (&residuals)[{residuals}], \
         const float (&d)[{states}], float (&ds)[{states}], float (&dg)[{gates}]) {{
{backward}    }}
}};
",
        recurrent = C::GR,
        external = C::GX,
        name = comment(C::NAME),
        state_names = list(C::STATES),
        gate_names = list(&gate_names::<C>()),
        wide = bit_set(C::WIDE),
        wide_gates = bit_set(C::WIDE_GATES),
        constant = bit_set(C::CONSTANT),
        forward = body::<Cuda>(
            &forward(cell),
            &[s.clone(), g.clone()],
            &[Parameter::states::<C>("next")],
        ),
        linearize = body::<Cuda>(&linearize, &[s, g], std::slice::from_ref(&residual_array)),
        backward = body::<Cuda>(
            &transposed,
            &[residual_array, Parameter::states::<C>("d")],
            &[Parameter::states::<C>("ds"), Parameter::gates::<C>("dg")],
        ),
    )
}

struct Cuda;

impl Language for Cuda {
    const INDENT: &'static str = "        ";
    const NAN: &'static str = "real::nan()";
    const INFINITY: &'static str = "real::inf()";

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
