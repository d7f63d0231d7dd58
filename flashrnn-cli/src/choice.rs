//! Cells and element types by their names on the command line, with macros that dispatch to the
//! corresponding Rust types.

use std::fmt;

use clap::ValueEnum;
use flashrnn::{Dtype, Element};

/// Evaluates an expression with the cell of a [`CellName`], as in
/// `with_cell!(name, |cell| run(&cell))`. The expression is compiled once per cell.
macro_rules! with_cell {
    ($name:expr, |$cell:ident| $body:expr) => {
        match $name {
            $crate::choice::CellName::Elman => {
                let $cell = flashrnn::Elman;
                $body
            }
            $crate::choice::CellName::Gru => {
                let $cell = flashrnn::Gru;
                $body
            }
            $crate::choice::CellName::Lstm => {
                let $cell = flashrnn::Lstm;
                $body
            }
            $crate::choice::CellName::Slstm => {
                let $cell = flashrnn::Slstm;
                $body
            }
        }
    };
}

/// Evaluates an expression with the element type of a [`DtypeName`], as in
/// `with_dtype!(name, |T| run::<T>())`. The expression is compiled once per type.
macro_rules! with_dtype {
    ($name:expr, |$t:ident| $body:expr) => {
        match $name {
            $crate::choice::DtypeName::F32 => {
                type $t = f32;
                $body
            }
            $crate::choice::DtypeName::F64 => {
                type $t = f64;
                $body
            }
            $crate::choice::DtypeName::Bf16 => {
                type $t = flashrnn::bf16;
                $body
            }
            $crate::choice::DtypeName::F16 => {
                type $t = flashrnn::f16;
                $body
            }
        }
    };
}

/// A built-in cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CellName {
    /// Elman network: h' = tanh g.
    Elman,
    /// Gated recurrent unit, as in PyTorch.
    Gru,
    /// Long short-term memory, as in PyTorch.
    Lstm,
    /// sLSTM of xLSTM.
    Slstm,
}

impl CellName {
    /// Every cell, in the order of the tables.
    pub const ALL: [Self; 4] = [Self::Elman, Self::Gru, Self::Lstm, Self::Slstm];
}

/// The element type of wx, states and the weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DtypeName {
    /// IEEE single precision.
    #[default]
    F32,
    /// IEEE double precision.
    F64,
    /// The upper half of an f32.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl DtypeName {
    /// Every element type, in the order of the tables.
    pub const ALL: [Self; 4] = [Self::F64, Self::F32, Self::Bf16, Self::F16];

    /// Returns the corresponding [`Dtype`].
    pub fn dtype(self) -> Dtype {
        with_dtype!(self, |T| T::DTYPE)
    }

    /// Returns the name used by PyTorch and NumPy.
    pub fn long(self) -> &'static str {
        match self {
            Self::F64 => "float64",
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
        }
    }
}

/// Writes a name as it is spelled on the command line.
fn spell(name: &impl ValueEnum, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    name.to_possible_value().map_or(Ok(()), |value| f.pad(value.get_name()))
}

impl fmt::Display for CellName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        spell(self, f)
    }
}

impl fmt::Display for DtypeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        spell(self, f)
    }
}

pub(crate) use {with_cell, with_dtype};
