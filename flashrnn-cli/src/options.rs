//! The options of a problem as command-line flags, and their conversion to [`Options`].

use clap::ValueEnum;
use flashrnn::{Layout, Options, Save};

/// [`Options`] on the command line.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct OptionArgs {
    /// Process each row from its end to its start.
    #[arg(long)]
    pub reverse: bool,
    /// Clamp h to ±X after each step.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub forward_clip: Option<f64>,
    /// Clamp the gradient that flows to h through R to ±X at each step.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub recurrent_grad_clip: Option<f64>,
    /// Block the gradient that flows to h through R (d_R is still computed).
    #[arg(long)]
    pub cut_recurrent_grad: bool,
    /// Allow f32 products to round to TF32 if the backend supports it.
    #[arg(long)]
    pub tf32: bool,
    /// What the forward pass saves for the backward pass.
    #[arg(long, value_name = "WHAT", default_value = "gates")]
    pub save: SaveName,
    /// Store time as the first axis and batch as the second.
    #[arg(long)]
    pub time_major: bool,
}

/// [`Save`] on the command line.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum SaveName {
    /// Every gate, for a faster backward pass.
    #[default]
    Gates,
    /// Only the states; the backward pass recomputes the gates.
    Recompute,
}

impl OptionArgs {
    /// Returns the options of the operator.
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
