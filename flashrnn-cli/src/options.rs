//! The options of a problem as command-line flags, and the [`Options`] that they set.

use clap::ValueEnum;
use flashrnn::{Layout, Options, Save};

/// [`Options`] on the command line.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct OptionArgs {
    /// Time runs backwards, each row from its own end.
    #[arg(long)]
    pub reverse: bool,
    /// Clamp h to ±X after each step.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub forward_clip: Option<f64>,
    /// Clamp the gradient that reaches h through R to ±X at each step.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub recurrent_grad_clip: Option<f64>,
    /// Let no gradient reach h through R (d_R is still computed).
    #[arg(long)]
    pub cut_recurrent_grad: bool,
    /// Let f32 products round to TF32, where the backend has it.
    #[arg(long)]
    pub tf32: bool,
    /// What the forward pass keeps for the backward pass.
    #[arg(long, value_name = "WHAT", default_value = "gates")]
    pub save: SaveName,
    /// Time is the first axis, batch the second.
    #[arg(long)]
    pub time_major: bool,
}

/// [`Save`] on the command line.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum SaveName {
    /// Every gate: the faster backward pass.
    #[default]
    Gates,
    /// Nothing besides the states: gates are computed again.
    Recompute,
}

impl OptionArgs {
    /// The options as the operator takes them.
    pub fn options(&self) -> Options {
        Options {
            layout: if self.time_major { Layout::TimeMajor } else { Layout::BatchMajor },
            reverse: self.reverse,
            forward_clip: self.forward_clip,
            recurrent_grad_clip: self.recurrent_grad_clip,
            cut_recurrent_grad: self.cut_recurrent_grad,
            tf32: self.tf32,
            save: match self.save {
                SaveName::Gates => Save::Gates,
                SaveName::Recompute => Save::Recompute,
            },
        }
    }
}
