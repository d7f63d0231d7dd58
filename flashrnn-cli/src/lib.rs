//! The command `flashrnn`, as a library: so that it is compiled once for the command and its tests.
//!
//! | subcommand | does |
//! |---|---|
//! | `train` | trains a character language model |
//! | `run` | runs one problem from a safetensors file, forward and backward |
//! | `info` | says which backends, devices and element types there are |
//! | `verify` | compares this machine's results with the f64 reference |
//! | `bench` | times forward and forward+backward |
//!
//! Exit status: 0 where all went well, 1 for bad input or a failed check, 2 for a command line that
//! makes no sense.

mod backend;
mod bench;
mod choice;
mod info;
mod memory;
mod options;
mod output;
mod run;
mod tensors;
mod terminal;
mod train;
mod verify;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
pub use memory::Memory;
use terminal::{Printable, escaped};

/// Trainable recurrent networks: LSTM, GRU, Elman and sLSTM as one operator.
#[derive(Parser)]
#[command(name = "flashrnn", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a character language model and keep its best checkpoint.
    Train(train::Args),
    /// Run one problem: tensors in from a safetensors file, tensors out to another.
    Run(run::Args),
    /// Say which backends, devices and element types there are.
    Info(info::Args),
    /// Compare random problems with the f64 reference on this machine.
    Verify(verify::Args),
    /// Time forward and forward+backward.
    Bench(bench::Args),
}

/// Does what the command line says.
#[must_use]
pub fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(Cli { command }) => status(start_threads().and_then(|()| run(command))),
        Err(error) => refuse(&error),
    }
}

/// Runs a subcommand. Returns whether its check held.
fn run(command: Command) -> anyhow::Result<bool> {
    let mut out = Printable(io::stdout());
    let good = match command {
        Command::Train(args) => train::main(args, &mut out).map(|()| true),
        Command::Run(args) => run::main(args).map(|()| true),
        Command::Info(args) => info::main(&args, &mut out).map(|()| true),
        Command::Verify(args) => verify::main(args, &mut out),
        Command::Bench(args) => bench::main(args, &mut out).map(|()| true),
    }?;
    out.flush()?;
    Ok(good)
}

/// Starts the threads that rayon shares in this process: candle and the backend would panic where
/// they can't be had.
fn start_threads() -> anyhow::Result<()> {
    const VARIABLE: &str = "RAYON_NUM_THREADS";
    // As many as a backend of the CPU may have of its own.
    const MAX_THREADS: usize = 1024;
    let wanted = std::env::var(VARIABLE).ok().and_then(|n| n.parse::<usize>().ok());
    if let Some(n) = wanted.filter(|&n| n > MAX_THREADS) {
        bail!("{VARIABLE} is {n}, wanted at most {MAX_THREADS} threads");
    }
    rayon::ThreadPoolBuilder::new()
        .build_global()
        .context("can't start the threads to compute with")
}

/// Prints what is wrong with the command line, or the help that was asked for, and returns clap's
/// exit status.
fn refuse(error: &clap::Error) -> ExitCode {
    let steers = |arg: OsString| escaped(&arg.to_string_lossy()) != arg.to_string_lossy();
    // Where stderr or stdout can't be written to there is nothing more to do.
    if std::env::args_os().any(steers) {
        // clap's colours are escape sequences, which can't be told from those of the argument.
        let _ = write!(Printable(io::stderr()), "{}", error.render());
    } else {
        let _ = error.print();
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// The exit status for what a command returned: whether its check held, or why it could not run.
fn status(result: anyhow::Result<bool>) -> ExitCode {
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // The reader of our output went away, as `head` does: there is nobody left to tell.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Where even stderr is closed there is nothing more to do.
            let _ = writeln!(Printable(io::stderr()), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
