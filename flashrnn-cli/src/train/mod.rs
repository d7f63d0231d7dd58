//! `flashrnn train`: trains a character language model on a text, with candle and flashrnn's
//! recurrences.
//!
//! [`text`] reads the text, [`markov`] is the baseline, [`model`] the network and [`trainer`] the
//! training loop. [`checkpoint`], [`report`] and [`sample`] produce the files in the output folder.

mod checkpoint;
mod markov;
mod model;
mod progress;
mod report;
mod sample;
mod text;
mod trainer;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, bail};
use flashrnn::{BackendName, Cell, CellSizes};
use flashrnn_gpu::Family;

use crate::backend;
use crate::choice::{CellName, DtypeName, with_cell};
use crate::memory;
use markov::Markov;
use model::Sizes;
use progress::Progress;
use report::{FILES, Report, Summary};
use text::{Corpus, Vocabulary};
use trainer::{Recipe, Trained};

/// The arguments of `flashrnn train`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The UTF-8 text to learn [default: Cicero's De finibus, book one, in Latin].
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// The recurrent cell.
    #[arg(long, value_enum, default_value_t = CellName::Slstm)]
    cell: CellName,
    /// The number of recurrent layers.
    #[arg(long, default_value_t = 2)]
    layers: usize,
    /// The number of heads per layer.
    #[arg(long, default_value_t = 4)]
    heads: usize,
    /// The number of units per head.
    #[arg(long, default_value_t = 32)]
    head_dim: usize,
    /// The number of characters per row and step. Gradients flow through all of them.
    #[arg(long, default_value_t = 64)]
    seq_len: usize,
    /// The number of rows per step.
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// The number of training steps.
    #[arg(long, default_value_t = 1200)]
    steps: usize,
    /// The peak learning rate, which is reached after a warm-up and then decays.
    #[arg(long, default_value_t = 8e-3)]
    lr: f64,
    /// The dropout rate during training, at least 0 and below 1.
    #[arg(long, default_value_t = 0.25)]
    dropout: f64,
    /// The random seed. The same seed reproduces the same result on the same machine.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The sampling temperature of the text printed at the end; 0 selects the most likely
    /// character.
    #[arg(long, default_value_t = 0.7)]
    temperature: f64,
    /// The backend that runs the recurrence.
    #[arg(long, default_value_t, value_parser = backend::parser())]
    backend: BackendName,
    /// The folder for the checkpoint, the metrics, the loss curve and the sample.
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
}

/// The number of characters in the sample at the end.
const SAMPLE: usize = 500;
/// The maximum number of parameters, and of elements in one activation. Anything larger is assumed
/// to be a mistake.
const MAX_ELEMENTS: usize = 1 << 31;

impl Args {
    fn check(&self) -> Result<()> {
        for (flag, size) in [
            ("layers", self.layers),
            ("heads", self.heads),
            ("head-dim", self.head_dim),
            ("seq-len", self.seq_len),
            ("batch", self.batch),
            ("steps", self.steps),
        ] {
            if size == 0 {
                bail!("--{flag} is 0, wanted at least 1");
            }
        }
        if !(self.lr.is_finite() && self.lr > 0.0) {
            bail!("--lr is {}, wanted a finite number above 0", self.lr);
        }
        if !(0.0..1.0).contains(&self.dropout) {
            bail!("--dropout is {}, wanted at least 0 and below 1", self.dropout);
        }
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            bail!("--temperature is {}, wanted a finite number of at least 0", self.temperature);
        }
        let product = |factors: &[usize]| factors.iter().try_fold(1usize, |p, &f| p.checked_mul(f));
        let fits = |factors: &[usize]| product(factors).is_some_and(|p| p <= MAX_ELEMENTS);
        // The sizes of W in all layers, and of the gates of a training step.
        let (heads, dim) = (self.heads, self.head_dim);
        if !fits(&[4, self.layers, heads, dim, heads, dim])
            || !fits(&[4, self.batch, self.seq_len, heads, dim])
        {
            bail!(
                "--layers {} --heads {heads} --head-dim {dim} --batch {} --seq-len {} is too \
                 large, wanted at most {MAX_ELEMENTS} weights and as many gates per step",
                self.layers,
                self.batch,
                self.seq_len
            );
        }
        Ok(())
    }

    /// Checks that the available memory suffices for the tensors that a training step needs at
    /// least, with a vocabulary of `characters`.
    fn check_memory(&self, characters: usize) -> Result<()> {
        let gates = with_cell!(self.cell, |cell| external_gates(&cell)) as u128;
        let [layers, heads, dim, seq_len, batch, characters] =
            [self.layers, self.heads, self.head_dim, self.seq_len, self.batch, characters]
                .map(|n| n as u128);
        let width = heads * dim;
        let parameters =
            2 * characters * width + layers * (gates * width * (width + dim + 1) + width);
        // For each time step: the input, the pre-activations, the saved gates and the states of
        // every layer, and the logits with their gradient.
        let activations = batch * seq_len * (layers * (2 * gates + 2) * width + 2 * characters);
        // A parameter has a gradient and two moments. A layer has about ten tensors, with a hundred
        // bytes each besides their elements.
        memory::check(
            16 * parameters + 4 * activations + 1000 * layers,
            "training a network of this size",
        )
    }
}

/// Returns the number of gates of a cell with external input.
fn external_gates<C: Cell>(_: &C) -> usize {
    C::GX
}

/// Trains a network, and prints a comparison of the best checkpoint with the Markov model.
pub fn main(args: Args, out: &mut impl Write) -> Result<()> {
    args.check()?;
    let text = text::read(args.text.as_deref())?;
    let vocabulary = Vocabulary::of(&text);
    args.check_memory(vocabulary.len())?;
    let corpus = Corpus::new(vocabulary.encode(&text)?, args.seq_len)?;
    let markov = Markov::train(corpus.train(), vocabulary.len())
        .bits_per_character(corpus.context(2), corpus.validation());
    let mut report = Report::new(&args.out, markov)?;
    let backend = backend::find(args.backend, Some(DtypeName::F32), Family::Auto)?;
    let sizes = Sizes {
        cell: args.cell,
        layers: args.layers,
        heads: args.heads,
        head_dim: args.head_dim,
        vocabulary: vocabulary.len(),
    };
    let recipe = Recipe {
        batch: args.batch,
        seq_len: args.seq_len,
        steps: args.steps,
        lr: args.lr,
        dropout: args.dropout,
        seed: args.seed,
    };
    let mut progress = Progress::new(args.steps, args.batch * args.seq_len);
    let trained =
        trainer::train(&recipe, &sizes, &vocabulary, &corpus, &backend, &mut report, &mut progress);
    progress.finish();
    let Trained { parameters, seconds } = trained?;
    let kept_step = report.kept_step()?;

    // Everything below uses the saved checkpoint, not the network in memory.
    let kept = checkpoint::load(&report.checkpoint(), &backend)?;
    let bits = trainer::bits_per_character(&kept.model, &corpus, &recipe)?;
    let drawn = sample::sample(
        &kept.model,
        corpus.context(args.seq_len),
        SAMPLE,
        args.temperature,
        args.seed,
    )?;
    let sample: String =
        drawn.into_iter().map(|number| kept.vocabulary.character(number)).collect();
    let summary = Summary {
        kept_step,
        kept_validation_bits_per_character: bits,
        markov_validation_bits_per_character: markov,
        parameters,
        seconds,
        command: std::env::args().collect(),
    };
    report.finish(&summary, &sample)?;

    writeln!(out, "{sample}\n")?;
    writeln!(
        out,
        "text          {} characters, {} distinct, the last {} used for validation",
        corpus.train().len() + corpus.validation().len(),
        vocabulary.len(),
        corpus.validation().len()
    )?;
    writeln!(
        out,
        "network       {} layers of {}, {} heads of {}, {parameters} parameters, {seconds:.1} s",
        kept.sizes.layers, kept.sizes.cell, kept.sizes.heads, kept.sizes.head_dim
    )?;
    writeln!(out, "validation    {bits:.3} bits per character, checkpoint of step {kept_step}")?;
    writeln!(
        out,
        "Markov        {markov:.3} bits per character, order 2, Witten-Bell, on the same characters"
    )?;
    writeln!(out, "written       {}: {}", args.out.display(), FILES.join(", "))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(flags: &str) -> Result<Args> {
        Ok(Line::try_parse_from(["train"].into_iter().chain(flags.split_whitespace()))?.args)
    }

    fn message(result: Result<()>) -> String {
        result.err().map(|error| format!("{error:#}")).unwrap_or_default()
    }

    #[test]
    fn invalid_flags_are_named() -> Result<()> {
        for (flags, wanted) in [
            ("--layers 0", "--layers is 0"),
            ("--heads 0", "--heads is 0"),
            ("--head-dim 0", "--head-dim is 0"),
            ("--seq-len 0", "--seq-len is 0"),
            ("--batch 0", "--batch is 0"),
            ("--steps 0", "--steps is 0"),
            ("--lr NaN", "--lr is NaN"),
            ("--lr=-1", "--lr is -1"),
            ("--lr inf", "--lr is inf"),
            ("--dropout 1", "--dropout is 1"),
            ("--temperature=-0.5", "--temperature is -0.5"),
            ("--head-dim 100000000", "too large"),
            ("--heads 18446744073709551615", "too large"),
        ] {
            let text = message(args(flags)?.check());
            assert!(text.contains(wanted), "{flags}: {text:?}");
        }
        args("")?.check()
    }

    #[test]
    fn a_short_text_is_rejected_before_anything_is_written() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let text = folder.path().join("short.txt");
        std::fs::write(&text, "salve")?;
        let out = folder.path().join("out");
        let flags = format!("--text {} --out {} --seq-len 10", text.display(), out.display());
        let text = message(main(args(&flags)?, &mut Vec::new()));
        assert!(text.contains("5 characters") && text.contains("--seq-len 10"), "{text}");
        assert!(!out.exists());
        Ok(())
    }

    #[test]
    fn a_small_run_learns_and_reports_its_checkpoint() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let text = folder.path().join("text.txt");
        std::fs::write(&text, "ara mara tara. ".repeat(60))?;
        for cell in ["slstm", "gru"] {
            let mut twice = Vec::new();
            for again in ["a", "b"] {
                let out = folder.path().join(format!("{cell}-{again}"));
                let flags = format!(
                    "--text {} --out {} --cell {cell} --layers 2 --heads 2 --head-dim 8 \
                     --seq-len 12 --batch 4 --steps 60 --lr 0.02 --dropout 0.1",
                    text.display(),
                    out.display()
                );
                let mut output = Vec::new();
                main(args(&flags)?, &mut output)?;
                let output = String::from_utf8(output)?;
                assert!(output.contains("validation") && output.contains("Markov"), "{output}");
                let lines = std::fs::read_to_string(out.join("metrics.jsonl"))?;
                let lines: Vec<serde_json::Value> =
                    lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
                let bits =
                    |line: &serde_json::Value| line["validation_bits_per_character"].as_f64();
                let Some((summary, curve)) = lines.split_last() else { bail!("no metrics") };
                let kept = summary["kept_validation_bits_per_character"].as_f64();
                let lowest = curve[1..].iter().filter_map(bits).fold(f64::INFINITY, f64::min);
                assert_eq!(kept, Some(lowest));
                assert!(Some(lowest) < bits(&curve[0]).map(|before| 0.5 * before), "{curve:?}");
                assert!(std::fs::read_to_string(out.join("loss.svg"))?.contains("</svg>"));
                assert_eq!(
                    std::fs::read_to_string(out.join("sample.txt"))?.chars().count(),
                    SAMPLE
                );
                assert_eq!(std::fs::read_dir(&out)?.count(), 4);
                twice.push(std::fs::read(out.join("checkpoint.safetensors"))?);
            }
            assert!(twice[0] == twice[1], "{cell}: the same seed yields different parameters");
        }
        Ok(())
    }
}
