//! Reports progress on stderr while training runs: a bar on a terminal, plain lines elsewhere.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::report::Metrics;

pub struct Progress {
    bar: ProgressBar,
    /// The number of characters trained on per step.
    characters_per_step: usize,
    steps: usize,
    validation_bits: Option<f64>,
    start: Instant,
}

impl Progress {
    pub fn new(steps: usize, characters_per_step: usize) -> Self {
        let bar = ProgressBar::with_draw_target(Some(steps as u64), ProgressDrawTarget::stderr());
        let template = "{bar:30} {pos}/{len}  {msg}  {elapsed} elapsed, {eta} left";
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        Self { bar, characters_per_step, steps, validation_bits: None, start: Instant::now() }
    }

    /// Reports a completed step and its training loss.
    pub fn step(&mut self, step: usize, train_bits: f64) {
        let speed = (step * self.characters_per_step) as f64 / self.start.elapsed().as_secs_f64();
        let validation = self.validation_bits.map_or("-".to_owned(), |bits| format!("{bits:.3}"));
        self.bar.set_message(format!(
            "loss {train_bits:.3}, validation {validation} bits/char, {speed:.0} chars/s"
        ));
        self.bar.set_position(step as u64);
    }

    /// Reports a completed validation.
    pub fn validated(&mut self, line: &Metrics) {
        self.validation_bits = Some(line.validation_bits_per_character);
        if self.bar.is_hidden() {
            let left = Duration::from_secs_f64(
                self.start.elapsed().as_secs_f64() * (self.steps - line.step) as f64
                    / line.step as f64,
            );
            // Failing to write to stderr is no reason to stop.
            let _ = writeln!(
                io::stderr(),
                "step {}/{}  loss {:.3}  validation {:.3} bits/char  {:.0} chars/s  {} s left",
                line.step,
                self.steps,
                line.train_bits_per_character.unwrap_or(f64::NAN),
                line.validation_bits_per_character,
                line.characters_per_second.unwrap_or(f64::NAN),
                left.as_secs(),
            );
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
