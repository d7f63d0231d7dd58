//! Problems as Python describes them, and the Rust types of the names in them.

use flashrnn_core::{
    Cell, CellSizes, Dtype, Element, Error, Layout, Options, Problem, Result, Save, bf16, f16,
};
use pyo3::FromPyObject;

use crate::relu::ElmanRelu;

/// Runs generic code with the cell of a name.
pub(crate) trait WithCell {
    type Output;
    fn run<C: Cell>(self, cell: &C) -> Result<Self::Output>;
}

/// Runs generic code with the element types of tensors and weights.
pub(crate) trait WithElements {
    type Output;
    fn run<T: Element, W: Element>(self) -> Result<Self::Output>;
}

/// The names of all cells.
pub(crate) const CELLS: [&str; 5] = ["elman", "elman_relu", "gru", "lstm", "slstm"];

/// Runs `work` with the cell `name`, one of [`CELLS`].
///
/// # Errors
/// [`Error::InvalidProblem`] for another name.
pub(crate) fn with_cell<R>(name: &str, work: impl WithCell<Output = R>) -> Result<R> {
    match name {
        "elman" => work.run(&flashrnn_core::Elman),
        "elman_relu" => work.run(&ElmanRelu),
        "gru" => work.run(&flashrnn_core::Gru),
        "lstm" => work.run(&flashrnn_core::Lstm),
        "slstm" => work.run(&flashrnn_core::Slstm),
        _ => Err(unknown("cell", name, "elman, elman_relu, gru, lstm or slstm")),
    }
}

/// Runs `work` with the element types of two names, such as `bfloat16` and `float32`.
///
/// # Errors
/// [`Error::InvalidProblem`] for other names, and for pairs that no backend supports.
pub(crate) fn with_elements<R>(
    tensors: &str,
    weights: &str,
    work: impl WithElements<Output = R>,
) -> Result<R> {
    match (dtype("dtype", tensors)?, dtype("weight_dtype", weights)?) {
        (Dtype::F32, Dtype::F32) => work.run::<f32, f32>(),
        (Dtype::F64, Dtype::F64) => work.run::<f64, f64>(),
        (Dtype::F16, Dtype::F16) => work.run::<f16, f16>(),
        (Dtype::F16, Dtype::F32) => work.run::<f16, f32>(),
        (Dtype::Bf16, Dtype::Bf16) => work.run::<bf16, bf16>(),
        (Dtype::Bf16, Dtype::F32) => work.run::<bf16, f32>(),
        _ => Err(Error::InvalidProblem {
            option: "dtype of r and b",
            got: weights.into(),
            want: "the dtype of wx, or float32 if wx has 16 bits",
        }),
    }
}

fn dtype(option: &'static str, name: &str) -> Result<Dtype> {
    match name {
        "float16" => Ok(Dtype::F16),
        "bfloat16" => Ok(Dtype::Bf16),
        "float32" => Ok(Dtype::F32),
        "float64" => Ok(Dtype::F64),
        _ => Err(unknown(option, name, "float16, bfloat16, float32 or float64")),
    }
}

/// Reads the name of a [`Save`].
///
/// # Errors
/// [`Error::InvalidProblem`] for an unknown name.
pub(crate) fn save(name: &str) -> Result<Save> {
    match name {
        "gates" => Ok(Save::Gates),
        "recompute" => Ok(Save::Recompute),
        _ => Err(unknown("save", name, "gates or recompute")),
    }
}

fn unknown(option: &'static str, got: &str, want: &'static str) -> Error {
    Error::InvalidProblem { option, got: got.into(), want }
}

/// What a plan is made for: the attributes of the Python class `Description`.
#[derive(FromPyObject)]
pub(crate) struct Description {
    /// The element type of `wx` and the states.
    pub dtype: String,
    /// The element type of `r` and `b`.
    pub weight_dtype: String,
    batch: usize,
    time: usize,
    heads: usize,
    head_dim: usize,
    options: Settings,
}

/// The cell and the options: the attributes of the Python class `Options`.
#[derive(FromPyObject)]
struct Settings {
    cell: String,
    time_major: bool,
    reverse: bool,
    forward_clip: Option<f64>,
    recurrent_grad_clip: Option<f64>,
    cut_recurrent_grad: bool,
    tf32: bool,
    save: String,
}

impl Description {
    /// Returns the name of the cell.
    pub fn cell(&self) -> &str {
        &self.options.cell
    }

    /// Returns the problem with its sizes and options.
    ///
    /// # Errors
    /// [`Error::InvalidProblem`] if `save` is unknown.
    pub fn problem(&self) -> Result<Problem> {
        let options = Options {
            layout: if self.options.time_major { Layout::TimeMajor } else { Layout::BatchMajor },
            reverse: self.options.reverse,
            forward_clip: self.options.forward_clip,
            recurrent_grad_clip: self.options.recurrent_grad_clip,
            cut_recurrent_grad: self.options.cut_recurrent_grad,
            tf32: self.options.tf32,
            save: save(&self.options.save)?,
        };
        Ok(Problem::new(self.batch, self.time, self.heads, self.head_dim).with(options))
    }
}

/// Returns, when run with a cell, its numbers of states, of gates, and of gates with recurrent and
/// with external input.
pub(crate) struct Sizes;

impl WithCell for Sizes {
    type Output = [usize; 4];

    fn run<C: Cell>(self, _: &C) -> Result<[usize; 4]> {
        Ok([C::S, C::G, C::GR, C::GX])
    }
}

/// Returns, when run with element types, how many elements per unit and step a forward pass saves,
/// in `gates` and in `wide`.
pub(crate) struct SavedPerUnit<'a> {
    pub cell: &'a str,
    pub save: Save,
}

impl WithElements for SavedPerUnit<'_> {
    type Output = [usize; 2];

    fn run<T: Element, W: Element>(self) -> Result<[usize; 2]> {
        struct Of<T>(Save, std::marker::PhantomData<T>);
        impl<T: Element> WithCell for Of<T> {
            type Output = [usize; 2];
            fn run<C: Cell>(self, _: &C) -> Result<[usize; 2]> {
                Ok(Problem::new(1, 1, 1, 1).shapes::<C>()?.saved::<T>(self.0))
            }
        }
        with_cell(self.cell, Of::<T>(self.save, std::marker::PhantomData))
    }
}
