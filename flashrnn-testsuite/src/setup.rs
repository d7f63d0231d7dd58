//! Random setups drawn by proptest, with ragged sizes and every option except `tf32`. They print as
//! Rust code.

use std::fmt;

use flashrnn_core::{Layout, Options, Problem, Save};
use proptest::prelude::*;
use proptest::sample::select;

use crate::case::Tensors;

/// The parameters that proptest draws. Together with a cell and element types they determine a
/// [`Case`](crate::Case).
#[derive(Clone, PartialEq)]
pub struct Setup {
    /// Sizes, layout and options.
    pub problem: Problem,
    /// The optional tensors.
    pub tensors: Tensors,
    /// The seed of the values.
    pub seed: u64,
}

/// Prints as Rust code.
impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { batch, time, heads, head_dim, options } = &self.problem;
        let clip = |v: Option<f64>| match v {
            None => "None".into(),
            Some(v) if v == f64::INFINITY => "Some(f64::INFINITY)".into(),
            Some(v) => format!("Some({v:?})"),
        };
        writeln!(
            f,
            "let problem = Problem::new({batch}, {time}, {heads}, {head_dim}).with(Options {{"
        )?;
        writeln!(f, "    layout: Layout::{:?},", options.layout)?;
        writeln!(f, "    reverse: {},", options.reverse)?;
        writeln!(f, "    forward_clip: {},", clip(options.forward_clip))?;
        writeln!(f, "    recurrent_grad_clip: {},", clip(options.recurrent_grad_clip))?;
        writeln!(f, "    cut_recurrent_grad: {},", options.cut_recurrent_grad)?;
        writeln!(f, "    tf32: {},", options.tf32)?;
        writeln!(f, "    save: Save::{:?},", options.save)?;
        writeln!(f, "}});")?;
        writeln!(f, "let tensors = {:?};", self.tensors)?;
        write!(f, "let seed = {};", self.seed)
    }
}

/// Sizes at and around the widths of vectors and tiles. Proptest shrinks towards the first.
const BATCH: &[usize] = &[1, 2, 3, 4, 5, 8, 13, 17, 33];
const TIME: &[usize] = &[0, 1, 2, 3, 5, 8, 17, 33];
const HEADS: &[usize] = &[1, 2, 3, 4, 7, 16, 17];
const HEAD_DIM: &[usize] = &[1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 128, 129];

/// Returns setups with any sizes, and any options except `tf32`, whose forward pass takes at most
/// about `work` multiplications per gate.
pub fn any_setup(work: usize) -> impl Strategy<Value = Setup> {
    let sizes = (select(BATCH), select(TIME), select(HEADS), select(HEAD_DIM));
    let bounds = &[0.5, 0.1, 1.0, f64::INFINITY][..];
    let clip = || prop_oneof![3 => Just(None), 1 => select(bounds).prop_map(Some)];
    let options = (
        any::<bool>(),
        any::<bool>(),
        clip(),
        clip(),
        proptest::bool::weighted(0.2),
        any::<bool>(),
    );
    let flag = any::<bool>;
    let tensors = (flag(), flag(), flag(), flag(), flag()).prop_map(
        |(s0, lengths, resets, d_states, d_last)| {
            // Without any incoming gradient there would be nothing to test.
            Tensors { s0, lengths, resets, d_states: d_states || !d_last, d_last, extreme: false }
        },
    );
    (sizes, options, tensors, 0u64..1 << 32).prop_map(move |(sizes, options, tensors, seed)| {
        let (mut batch, mut time, mut heads, head_dim) = sizes;
        while batch * time * heads * head_dim * head_dim > work && batch * time * heads > 1 {
            let largest = batch.max(time).max(heads);
            let shrunk = if largest == batch {
                &mut batch
            } else if largest == time {
                &mut time
            } else {
                &mut heads
            };
            *shrunk = *shrunk * 2 / 3;
        }
        let (time_major, reverse, forward_clip, recurrent_grad_clip, cut, recompute) = options;
        let problem = Problem::new(batch, time, heads, head_dim).with(Options {
            layout: if time_major { Layout::TimeMajor } else { Layout::BatchMajor },
            reverse,
            forward_clip,
            recurrent_grad_clip,
            cut_recurrent_grad: cut,
            save: if recompute { Save::Recompute } else { Save::Gates },
            ..Options::default()
        });
        Setup { problem, tensors, seed }
    })
}
