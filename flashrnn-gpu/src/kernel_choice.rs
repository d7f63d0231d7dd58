//! The kernels that run the time steps: those that the user asks for, and those that a plan chose.

use std::fmt;
use std::str::FromStr;

use flashrnn_core::{Error, Result};

/// The kernels that a plan should use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Family {
    /// Fused kernels if the problem fits them, otherwise alternating ones.
    #[default]
    Auto,
    /// Many time steps per launch. Planning fails if the problem does not fit.
    Fused,
    /// One launch per time step.
    Alternating,
}

impl Family {
    /// All families.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Fused, Self::Alternating];

    /// Returns the lower-case name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Fused => "fused",
            Self::Alternating => "alternating",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Family {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let named = Self::ALL.into_iter().find(|family| family.name() == name);
        named.ok_or_else(|| Error::InvalidProblem {
            option: "kernel",
            got: name.into(),
            want: "auto, fused or alternating",
        })
    }
}

/// Describes the kernel that runs the time steps of one pass.
///
/// Uses CUDA's terms: a WGSL workgroup is a block here, and a dispatch is a launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelChoice {
    /// `forward` or `backward`.
    pub pass: &'static str,
    /// `fused` (many time steps per launch), `grid` (the same, with heads spread over the whole GPU) or
    /// `alternating` (one launch per time step).
    pub family: &'static str,
    /// Units of a head per block, including padding.
    pub units: usize,
    /// Batch rows per block.
    pub rows: usize,
    /// Warps of 32 threads per block.
    pub warps: usize,
    /// Blocks per launch.
    pub blocks: usize,
    /// Blocks per cluster, which share a head; 1 if there are no clusters.
    pub cluster: usize,
    /// The reason for the choice.
    pub why: &'static str,
}

impl fmt::Display for KernelChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pass, family, units, rows, warps, blocks, cluster, why } = self;
        let launch = match *family {
            "alternating" => "one launch per step",
            _ => "many steps per launch",
        };
        write!(f, "{pass}: {family}, {launch}, {blocks} blocks")?;
        if *cluster > 1 {
            write!(f, " in clusters of {cluster}")?;
        }
        write!(f, " of {units} units by {rows} rows on {warps} warps; {why}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed() {
        for family in Family::ALL {
            assert_eq!(family.to_string().parse(), Ok(family));
        }
        let unknown = "other".parse::<Family>();
        assert!(matches!(unknown, Err(Error::InvalidProblem { option: "kernel", .. })));
    }

    #[test]
    fn a_choice_is_a_sentence() {
        let choice = KernelChoice {
            pass: "forward",
            family: "fused",
            units: 64,
            rows: 2,
            warps: 8,
            blocks: 96,
            cluster: 4,
            why: "R fits",
        };
        assert_eq!(
            choice.to_string(),
            "forward: fused, many steps per launch, 96 blocks in clusters of 4 of 64 units by 2 \
             rows on 8 warps; R fits"
        );
        let alone = KernelChoice { family: "alternating", cluster: 1, ..choice };
        assert_eq!(
            alone.to_string(),
            "forward: alternating, one launch per step, 96 blocks of 64 units by 2 rows on 8 \
             warps; R fits"
        );
    }
}
