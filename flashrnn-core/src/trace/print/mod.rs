//! Prints traced cells as source code. This module holds what all target languages share.

use std::collections::HashSet;

use super::{Binary, Function, Id, Op, Unary, gate_names};
use crate::Cell;

pub mod cuda;
pub mod wgsl;

/// The syntax in which the target languages differ.
trait Language {
    /// The indentation of a function's statements.
    const INDENT: &'static str;
    /// An expression for NaN in f32.
    const NAN: &'static str;
    /// An expression for +∞ in f32.
    const INFINITY: &'static str;
    /// Defines a local variable, a mask or a number.
    fn local(mask: bool, name: &str, value: &str) -> String;
    /// Calls one of [`Real`](crate::Real)'s functions.
    fn call(function: &str, operands: &[&str]) -> String;
    /// Selects `a` where `mask` is set, else `b`.
    fn select(mask: &str, a: &str, b: &str) -> String;
    /// Divides `a` by `b`.
    fn quotient(a: &str, b: &str) -> String {
        format!("{a} / {b}")
    }

    /// Spells the constant `v`, rounded to f32.
    fn literal(v: f64) -> String {
        match v as f32 {
            v if v.is_nan() => Self::NAN.into(),
            f32::INFINITY => Self::INFINITY.into(),
            f32::NEG_INFINITY => format!("-{}", Self::INFINITY),
            // The shortest decimal that reads back as v, always with a point or an exponent.
            v => format!("{v:?}f"),
        }
    }
}

/// An array parameter of a printed function.
#[derive(Clone)]
struct Parameter<'a> {
    /// The name of the array.
    array: &'static str,
    /// The names of its elements.
    elements: Vec<&'a str>,
}

impl Parameter<'static> {
    /// Makes an array of one number per state of the cell `C`.
    fn states<C: Cell>(array: &'static str) -> Self {
        Self { array, elements: C::STATES.to_vec() }
    }

    /// Makes an array of one number per gate of the cell `C`.
    fn gates<C: Cell>(array: &'static str) -> Self {
        Self { array, elements: gate_names::<C>() }
    }
}

impl Parameter<'_> {
    /// Returns the expression for each element, as in `s[0]`.
    fn places(&self) -> impl Iterator<Item = String> {
        (0..self.elements.len()).map(|k| format!("{}[{k}]", self.array))
    }
}

/// Prints the body of `function`, one indented statement per line.
fn body<L: Language>(function: &Function, inputs: &[Parameter], outputs: &[Parameter]) -> String {
    statements::<L>(function, inputs, outputs)
        .into_iter()
        .map(|line| format!("{}{line}\n", L::INDENT))
        .collect()
}

/// Returns the statements that compute `function`. Each input that is used becomes a local named
/// after its array and element, such as `s_h`; the results of operations are `v1`, `v2`, and so on.
///
/// `inputs` and `outputs` are the arrays that hold the function's inputs and receive its outputs,
/// in order. All inputs are read before the first output is written, so arrays may overlap.
fn statements<L: Language>(
    function: &Function,
    inputs: &[Parameter],
    outputs: &[Parameter],
) -> Vec<String> {
    let names = names(inputs, outputs);
    let sources: Vec<String> = inputs.iter().flat_map(Parameter::places).collect();
    let mut loads = vec![];
    let mut operations = vec![];
    // The spelling of each node as an operand: the name of a local, or a literal.
    let mut spelled: Vec<String> = vec![];
    for &op in function.nodes() {
        let operand = |id: Id| spelled[id].as_str();
        let value = match op {
            Op::Input(k) => {
                loads.push(L::local(false, &names[k], &sources[k]));
                spelled.push(names[k].clone());
                continue;
            }
            Op::Literal(bits) => {
                spelled.push(L::literal(f64::from_bits(bits)));
                continue;
            }
            Op::Chain { value, .. } => operand(value).to_string(),
            Op::Unary(op, x) => unary::<L>(op, operand(x)),
            Op::Binary(op, a, b) => binary::<L>(op, operand(a), operand(b)),
            Op::Gt(a, b) => format!("{} > {}", operand(a), operand(b)),
            Op::Select(mask, a, b) => L::select(operand(mask), operand(a), operand(b)),
        };
        let name = format!("v{}", operations.len() + 1);
        operations.push(L::local(matches!(op, Op::Gt(..)), &name, &value));
        spelled.push(name);
    }
    let targets = outputs.iter().flat_map(Parameter::places);
    let stores = targets
        .zip(function.outputs())
        .map(|(place, &(_, id))| format!("{place} = {};", spelled[id]));
    loads.into_iter().chain(operations).chain(stores).collect()
}

fn unary<L: Language>(op: Unary, x: &str) -> String {
    let function = match op {
        Unary::Neg => return format!("-{x}"),
        Unary::Exp => "exp",
        Unary::Ln => "ln",
        Unary::Sqrt => "sqrt",
        Unary::Abs => "abs",
        Unary::Tanh => "tanh",
        Unary::TanhSlope => "tanh_slope",
        Unary::Sigmoid => "sigmoid",
        Unary::SigmoidSlope => "sigmoid_slope",
        Unary::SoftplusNegAbs => "softplus_neg_abs",
    };
    L::call(function, &[x])
}

fn binary<L: Language>(op: Binary, a: &str, b: &str) -> String {
    match op {
        Binary::Add => format!("{a} + {b}"),
        Binary::Sub => format!("{a} - {b}"),
        Binary::Mul => format!("{a} * {b}"),
        Binary::Div => L::quotient(a, b),
        Binary::Max => L::call("max", &[a, b]),
        Binary::Min => L::call("min", &[a, b]),
    }
}

/// Returns a distinct variable name for each element of `inputs`. However odd the element's name,
/// the result is an identifier in every C-like language; since it begins with the array's name, it
/// is neither a keyword nor `v1`, and it never equals a parameter.
fn names(inputs: &[Parameter], outputs: &[Parameter]) -> Vec<String> {
    let mut taken: HashSet<String> =
        inputs.iter().chain(outputs).map(|p| p.array.to_string()).collect();
    let elements = inputs.iter().flat_map(|p| p.elements.iter().map(|element| (p.array, *element)));
    let unique = |(array, element): (&str, &str)| {
        let letters =
            element.split(|c: char| !c.is_ascii_alphanumeric()).filter(|part| !part.is_empty());
        let name = [array].into_iter().chain(letters).collect::<Vec<_>>().join("_");
        let mut candidates =
            [name.clone()].into_iter().chain((2..).map(|n: usize| format!("{name}_{n}")));
        let free = candidates.find(|candidate| !taken.contains(candidate)).unwrap_or(name);
        taken.insert(free.clone());
        free
    };
    elements.map(unique).collect()
}

/// Returns the bit set of `indices`, which are below 32 (`CellSizes` checks it), as a hexadecimal
/// literal.
fn bit_set(indices: &[usize]) -> String {
    format!("{:#x}", indices.iter().fold(0_u32, |set, &k| set | 1 << k))
}

/// Joins names for a comment.
fn list(names: &[&str]) -> String {
    comment(&names.join(", "))
}

/// Replaces every character that could end or extend a line comment in some language.
fn comment(text: &str) -> String {
    let safe = |c: char| c == ' ' || c.is_alphanumeric() || (c.is_ascii_graphic() && c != '\\');
    text.chars().map(|c| if safe(c) { c } else { '?' }).collect()
}
