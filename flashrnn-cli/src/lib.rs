//! The command `flashrnn`, as a library that is compiled once for the command and its tests.
//!
//! | subcommand | description |
//! |---|---|
//! | `train` | trains a character language model |
//! | `run` | runs one problem from a safetensors file, forward and backward |
//! | `info` | lists the available backends, devices and element types |
//! | `verify` | compares this machine's results with the f64 reference |
//! | `bench` | times forward and forward+backward |
//!
//! The exit status is 0 on success, 1 for bad input or a failed check, and 2 for an invalid command
//! line.

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
    /// Run one problem from a safetensors file and write the results to another.
    Run(run::Args),
    /// List the available backends, devices and element types.
    Info(info::Args),
    /// Compare random problems with the f64 reference on this machine.
    Verify(verify::Args),
    /// Time forward and forward+backward.
    Bench(bench::Args),
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(Cli { command }) => status(start_threads().and_then(|()| run(command))),
        Err(error) => report_usage(&error),
    }
}

/// Runs a subcommand. Returns whether its check passed.
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

/// Starts rayon's global thread pool, because candle would panic if it could not be started.
fn start_threads() -> anyhow::Result<()> {
    const VARIABLE: &str = "RAYON_NUM_THREADS";
    // The same limit as for the threads of the CPU backend.
    const MAX_THREADS: usize = 1024;
    let wanted = std::env::var(VARIABLE).ok().and_then(|n| n.parse::<usize>().ok());
    if let Some(n) = wanted.filter(|&n| n > MAX_THREADS) {
        bail!("{VARIABLE} is {n}, wanted at most {MAX_THREADS} threads");
    }
    rayon::ThreadPoolBuilder::new().build_global().context("can't start the worker threads")
}

/// Prints the error in the command line, or the requested help, and returns clap's exit status.
fn report_usage(error: &clap::Error) -> ExitCode {
    let needs_escaping = |arg: OsString| escaped(&arg.to_string_lossy()) != arg.to_string_lossy();
    // Write errors are ignored, since there is no other place to report to.
    if std::env::args_os().any(needs_escaping) {
        // Prints without clap's colours: their escape sequences can't be distinguished from those
        // in arguments.
        let _ = write!(Printable(io::stderr()), "{}", error.render());
    } else {
        let _ = error.print();
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// Reports the result of a command, and returns the exit status.
fn status(result: anyhow::Result<bool>) -> ExitCode {
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // The reader of the output has closed the pipe, as `head` does.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // A write error is ignored, since there is no other place to report to.
            let _ = writeln!(Printable(io::stderr()), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
