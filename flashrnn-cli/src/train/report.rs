//! The files that a run writes: the checkpoint, metrics as JSON lines, the loss curve as SVG, and a
//! sample.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use plotters::prelude::*;
use serde::Serialize;

use crate::output;

/// The names of the files.
pub const FILES: [&str; 4] = [CHECKPOINT, METRICS, CURVE, SAMPLE];
const CHECKPOINT: &str = "checkpoint.safetensors";
const METRICS: &str = "metrics.jsonl";
const CURVE: &str = "loss.svg";
const SAMPLE: &str = "sample.txt";

/// A line of the metrics file, without absent values.
#[derive(Clone, Debug, Serialize)]
pub struct Metrics {
    /// The number of completed training steps.
    pub step: usize,
    /// The mean training loss since the previous line, in bits per character.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_bits_per_character: Option<f64>,
    /// The validation loss, in bits per character.
    pub validation_bits_per_character: f64,
    /// The learning rate of the last step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// The number of characters trained on per second since the previous line, excluding
    /// validation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub characters_per_second: Option<f64>,
    /// The time since the start of training.
    pub seconds: f64,
}

/// The last line of the metrics file.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The step of the saved checkpoint.
    pub kept_step: usize,
    /// The validation loss of the saved checkpoint, computed after loading it.
    pub kept_validation_bits_per_character: f64,
    /// The loss of the order-2 Markov model on the same characters.
    pub markov_validation_bits_per_character: f64,
    pub parameters: usize,
    pub seconds: f64,
    pub command: Vec<String>,
}

/// Writes the best checkpoint, the metrics and the loss curve of a run to its folder.
///
/// Once the first checkpoint is written, the folder contains no files of an earlier run.
pub struct Report<'a> {
    folder: &'a Path,
    /// The loss of the Markov model, in bits per character.
    markov: f64,
    metrics: Vec<Metrics>,
    /// The step and the validation loss of the checkpoint in the folder.
    kept: Option<(usize, f64)>,
}

impl<'a> Report<'a> {
    /// Creates the folder if necessary, and checks that it is writable.
    pub fn new(folder: &'a Path, markov: f64) -> Result<Self> {
        let why = || format!("can't write to --out {}, wanted a writable folder", folder.display());
        fs::create_dir_all(folder).with_context(why)?;
        tempfile::tempfile_in(folder).with_context(why)?;
        Ok(Self { folder, markov, metrics: Vec::new(), kept: None })
    }

    /// Records a validation after a training step. If the network is the best so far, `checkpoint`
    /// serialises it and the result is saved.
    pub fn validated(
        &mut self,
        line: Metrics,
        checkpoint: impl FnOnce() -> Result<Vec<u8>>,
    ) -> Result<()> {
        let (step, bits) = (line.step, line.validation_bits_per_character);
        self.metrics.push(line);
        if bits.is_finite() && self.kept.is_none_or(|(_, lowest)| bits < lowest) {
            let bytes = checkpoint()?;
            if self.kept.is_none() {
                self.remove_earlier_run()?;
            }
            output::write(&self.checkpoint(), &bytes)?;
            self.kept = Some((step, bits));
        }
        if self.kept.is_some() { self.write(None) } else { Ok(()) }
    }

    /// Records the validation before the first step, which has no checkpoint.
    pub fn started(&mut self, line: Metrics) {
        self.metrics.push(line);
    }

    /// Writes the last line of the metrics, and the sample.
    pub fn finish(&self, summary: &Summary, sample: &str) -> Result<()> {
        self.write(Some(summary))?;
        output::write(&self.folder.join(SAMPLE), sample.as_bytes())
    }

    /// Returns the path of the checkpoint.
    pub fn checkpoint(&self) -> PathBuf {
        self.folder.join(CHECKPOINT)
    }

    /// Returns the step of the checkpoint, or an error if no validation loss was finite.
    pub fn kept_step(&self) -> Result<usize> {
        let (step, _) = self.kept.context("no validation loss was finite; try a lower --lr")?;
        Ok(step)
    }

    fn write(&self, summary: Option<&Summary>) -> Result<()> {
        output::write(&self.folder.join(METRICS), json_lines(&self.metrics, summary)?.as_bytes())?;
        output::write(&self.folder.join(CURVE), loss_curve(&self.metrics, self.markov)?.as_bytes())
    }

    /// Deletes the files of an earlier run, except the checkpoint, which is about to be replaced.
    /// Links and devices are kept, since writing to them does not replace them.
    fn remove_earlier_run(&self) -> Result<()> {
        for name in [METRICS, CURVE, SAMPLE] {
            let path = self.folder.join(name);
            if path.symlink_metadata().is_ok_and(|old| old.is_file()) {
                fs::remove_file(&path)
                    .with_context(|| format!("can't delete {}", path.display()))?;
            }
        }
        Ok(())
    }
}

/// Formats one JSON object per line.
fn json_lines(metrics: &[Metrics], summary: Option<&Summary>) -> Result<String> {
    let lines = metrics.iter().map(serde_json::to_string);
    let lines = lines.chain(summary.map(serde_json::to_string));
    Ok(lines.map(|line| Ok(line? + "\n")).collect::<serde_json::Result<String>>()?)
}

/// Draws the training and validation losses, with the Markov model as a reference line.
fn loss_curve(metrics: &[Metrics], markov: f64) -> Result<String> {
    let mut svg = String::new();
    draw(&mut svg, metrics, markov)
        .map_err(|error| anyhow::anyhow!("can't draw the loss curve: {error}"))?;
    Ok(svg)
}

fn draw(
    svg: &mut String,
    metrics: &[Metrics],
    markov: f64,
) -> Result<(), Box<dyn std::error::Error>> {
    let point = |step: usize, bits: f64| (step as f64, bits);
    let train: Vec<_> = metrics
        .iter()
        .filter_map(|m| Some(point(m.step, m.train_bits_per_character?)))
        .filter(|(_, bits)| bits.is_finite())
        .collect();
    let validation: Vec<_> = metrics
        .iter()
        .map(|m| point(m.step, m.validation_bits_per_character))
        .filter(|(_, bits)| bits.is_finite())
        .collect();
    let steps = metrics.iter().map(|m| m.step).max().unwrap_or(0).max(1) as f64;
    let bits = || train.iter().chain(&validation).map(|&(_, bits)| bits).chain([markov]);
    let low = bits().fold(f64::INFINITY, f64::min);
    let high = bits().fold(f64::NEG_INFINITY, f64::max);
    let margin = 0.05 * (high - low).max(0.1);

    let area = SVGBackend::with_string(svg, (800, 500)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption("Bits per character", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d(0.0..steps, low - margin..high + margin)?;
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc("bits per character")
        .light_line_style(TRANSPARENT)
        .draw()?;
    let level = vec![(0.0, markov), (steps, markov)];
    let series = [
        (train, BLUE, "training"),
        (validation, RED, "validation"),
        (level, BLACK, "order-2 Markov, validation"),
    ];
    for (points, color, name) in series {
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
    }
    chart.configure_series_labels().background_style(WHITE).border_style(BLACK).draw()?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: usize, train: Option<f64>, validation: f64) -> Metrics {
        Metrics {
            step,
            train_bits_per_character: train,
            validation_bits_per_character: validation,
            learning_rate: Some(0.01),
            characters_per_second: None,
            seconds: 1.5,
        }
    }

    #[test]
    fn files_of_two_runs_are_never_mixed() -> Result<()> {
        let folder = tempfile::tempdir()?;
        for name in FILES {
            fs::write(folder.path().join(name), "of an earlier run")?;
        }
        let mut report = Report::new(folder.path(), 3.0)?;
        report.started(line(0, None, 5.0));
        report.validated(line(1, Some(5.0), f64::NAN), || Ok(b"none".to_vec()))?;
        assert!(report.kept_step().is_err());
        for name in FILES {
            assert_eq!(
                fs::read_to_string(folder.path().join(name))?,
                "of an earlier run",
                "{name}"
            );
        }
        report.validated(line(2, Some(4.0), 4.0), || Ok(b"first".to_vec()))?;
        report.validated(line(3, Some(4.0), 4.5), || Ok(b"worse".to_vec()))?;
        assert_eq!(report.kept_step()?, 2);
        assert_eq!(fs::read(report.checkpoint())?, b"first");
        assert_eq!(fs::read_to_string(folder.path().join(METRICS))?.lines().count(), 4);
        assert!(fs::read_to_string(folder.path().join(CURVE))?.trim_end().ends_with("</svg>"));
        assert_eq!(fs::read_dir(folder.path())?.count(), 3, "the earlier sample was deleted");
        Ok(())
    }

    #[test]
    fn out_must_be_a_folder() -> Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        let message =
            Report::new(file.path(), 3.0).err().map(|e| format!("{e:#}")).unwrap_or_default();
        assert!(message.contains("--out"), "{message}");
        assert!(Report::new(&file.path().join("below"), 3.0).is_err());
        Ok(())
    }

    #[test]
    fn every_line_of_the_metrics_is_json() -> Result<()> {
        let text = json_lines(&[line(0, None, 5.0), line(10, Some(4.0), 4.5)], None)?;
        let lines: Vec<serde_json::Value> =
            text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        assert_eq!(lines.len(), 2);
        assert!(lines[0].get("train_bits_per_character").is_none());
        assert_eq!(lines[1]["train_bits_per_character"], 4.0);
        Ok(())
    }

    #[test]
    fn the_curve_is_valid_svg_for_any_numbers() -> Result<()> {
        for metrics in [
            vec![],
            vec![line(0, None, 2.0)],
            vec![line(0, None, f64::NAN), line(5, Some(f64::INFINITY), 3.0)],
            vec![line(0, None, 5.0), line(9, Some(4.0), 4.5), line(20, Some(3.0), 3.5)],
        ] {
            let svg = loss_curve(&metrics, 2.83)?;
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        }
        Ok(())
    }
}
