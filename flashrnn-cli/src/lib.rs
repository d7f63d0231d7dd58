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
//! Exit status: 0 where all went well, 1 for bad input or a failed check, 2 for a command line that makes no sense.

mod backend;
mod bench;
mod choice;
mod info;
mod run;
mod tensors;
mod train;
mod verify;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

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
    let mut out = io::stdout();
    let result = match Cli::parse().command {
        Command::Train(args) => train::main(args).map(|()| true),
        Command::Run(args) => run::main(args).map(|()| true),
        Command::Info(args) => info::main(&args, &mut out).map(|()| true),
        Command::Verify(args) => verify::main(args, &mut out),
        Command::Bench(args) => bench::main(args, &mut out).map(|()| true),
    };
    status(result.and_then(|good| Ok(out.flush().map(|()| good)?)))
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
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
