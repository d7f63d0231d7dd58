//! Source code from functions: what every target language has in common.

use std::collections::HashSet;

use super::{Binary, Function, Id, Op, Unary};

pub mod cuda;
pub mod wgsl;

/// How a language writes what languages differ in.
trait Language {
    /// The constant `v`, rounded to f32.
    fn literal(v: f64) -> String;
    /// The definition of a local of this name, a mask or a number.
    fn local(mask: bool, name: &str, value: &str) -> String;
    /// A call of one of [`Real`](crate::Real)'s functions.
    fn call(function: &str, operands: &[&str]) -> String;
    /// `a` where `mask` is set, else `b`.
    fn select(mask: &str, a: &str, b: &str) -> String;
    /// `a` by `b`.
    fn quotient(a: &str, b: &str) -> String {
        format!("{a} / {b}")
    }
}

/// An array among a printed function's parameters.
#[derive(Clone, Copy)]
struct Parameter<'a> {
    /// Its name.
    array: &'static str,
    /// How many numbers it holds.
    len: usize,
    /// Their names.
    elements: &'a [&'a str],
}

impl Parameter<'_> {
    /// The place of each number.
    fn places(&self) -> impl Iterator<Item = String> {
        (0..self.len).map(|k| format!("{}[{k}]", self.array))
    }
}

/// The statements that compute `function`, one a line: each input that is used becomes a local
/// named after its array and its element (`s_h`), each operation one named `v1`, `v2`, …
///
/// `inputs` and `outputs` are the arrays that hold the function's inputs and take its outputs, in
/// order. All inputs are read before an output is written, so that arrays may overlap.
fn statements<L: Language>(
    function: &Function,
    inputs: &[Parameter],
    outputs: &[Parameter],
) -> Vec<String> {
    let names = names(inputs, outputs);
    let sources: Vec<String> = inputs.iter().flat_map(Parameter::places).collect();
    let mut loads = vec![];
    let mut operations = vec![];
    // How an operand is spelled: a local's name, or a literal.
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

/// A local's name for each element of `inputs`: an identifier in every C-like language, however odd
/// the element's name, and none twice. The array's name comes first, so it is no keyword; neither
/// is it `v1` nor a parameter.
fn names(inputs: &[Parameter], outputs: &[Parameter]) -> Vec<String> {
    let mut taken: HashSet<String> =
        inputs.iter().chain(outputs).map(|p| p.array.to_string()).collect();
    let element =
        |p: &Parameter, k: usize| p.elements.get(k).copied().unwrap_or_default().to_string();
    let elements = inputs.iter().flat_map(|p| (0..p.len).map(move |k| (p.array, element(p, k))));
    let unique = |(array, element): (&str, String)| {
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

/// Text that can stand in a comment line of any language.
fn comment(text: &str) -> String {
    let safe = |c: char| c == ' ' || c.is_alphanumeric() || (c.is_ascii_graphic() && c != '\\');
    text.chars().map(|c| if safe(c) { c } else { '?' }).collect()
}
