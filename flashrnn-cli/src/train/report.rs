//! What a run leaves behind: metrics as JSON lines, the loss curve as SVG, files that are whole or absent.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use plotters::prelude::*;
use serde::Serialize;

/// One line of the metrics file. Absent values are left out.
#[derive(Clone, Debug, Serialize)]
pub struct Metrics {
    /// Training steps done.
    pub step: usize,
    /// The mean training loss since the line before, bits per character.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_bits_per_character: Option<f64>,
    /// The validation loss.
    pub validation_bits_per_character: f64,
    /// The learning rate of the last step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Characters trained on per second since the line before, validation not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub characters_per_second: Option<f64>,
    /// Since the start of training.
    pub seconds: f64,
}

/// The last line of the metrics file.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The step of the checkpoint kept.
    pub kept_step: usize,
    /// Its validation loss, computed again from the file.
    pub kept_validation_bits_per_character: f64,
    /// The order-2 Markov model on the same characters.
    pub markov_validation_bits_per_character: f64,
    pub parameters: usize,
    pub seconds: f64,
    pub command: Vec<String>,
}

/// One JSON object a line.
pub fn json_lines(metrics: &[Metrics], summary: Option<&Summary>) -> Result<String> {
    let lines = metrics.iter().map(serde_json::to_string);
    let lines = lines.chain(summary.map(serde_json::to_string));
    Ok(lines.map(|line| Ok(line? + "\n")).collect::<serde_json::Result<String>>()?)
}

/// Creates the folder if need be, and makes sure that files can be written there.
pub fn prepare_folder(folder: &Path) -> Result<()> {
    let why = || format!("cannot write to --out {}: wanted a folder that can be written", folder.display());
    fs::create_dir_all(folder).with_context(why)?;
    tempfile::NamedTempFile::new_in(folder).with_context(why)?;
    Ok(())
}

/// Writes a file beside its final place and renames it, so that a reader finds the old file or the new one, whole.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let why = || format!("cannot write {}", path.display());
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    // As any other new file, instead of for the owner's eyes only; the umask still applies.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder).with_context(why)?;
    file.write_all(bytes).with_context(why)?;
    file.as_file().sync_all().with_context(why)?;
    file.persist(path).with_context(why)?;
    Ok(())
}

/// The loss curve: training, validation, and the Markov model as a line to go below.
pub fn loss_curve(metrics: &[Metrics], markov: f64) -> Result<String> {
    let mut svg = String::new();
    draw(&mut svg, metrics, markov)
        .map_err(|error| anyhow::anyhow!("cannot draw the loss curve: {error}"))?;
    Ok(svg)
}

fn draw(svg: &mut String, metrics: &[Metrics], markov: f64) -> Result<(), Box<dyn std::error::Error>> {
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
    fn a_file_is_replaced_whole_and_nothing_else_stays() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("x.txt");
        write_atomically(&path, b"a long first text")?;
        write_atomically(&path, b"second")?;
        assert_eq!(fs::read(&path)?, b"second");
        assert_eq!(fs::read_dir(folder.path())?.count(), 1);
        // Where the rename fails, the temporary file goes too.
        let taken = folder.path().join("taken");
        fs::create_dir_all(taken.join("inside"))?;
        assert!(write_atomically(&taken, b"x").is_err());
        assert_eq!(fs::read_dir(folder.path())?.count(), 2);
        Ok(())
    }

    #[test]
    fn a_file_is_no_folder_to_write_to() -> Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        let said = prepare_folder(file.path()).err().map(|e| format!("{e:#}")).unwrap_or_default();
        assert!(said.contains("--out"), "{said}");
        assert!(prepare_folder(&file.path().join("below")).is_err());
        Ok(())
    }

    #[test]
    fn every_metrics_line_is_json() -> Result<()> {
        let text = json_lines(&[line(0, None, 5.0), line(10, Some(4.0), 4.5)], None)?;
        let lines: Vec<serde_json::Value> =
            text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        assert_eq!(lines.len(), 2);
        assert!(lines[0].get("train_bits_per_character").is_none());
        assert_eq!(lines[1]["train_bits_per_character"], 4.0);
        Ok(())
    }

    #[test]
    fn the_curve_is_an_svg_whatever_the_numbers() -> Result<()> {
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
