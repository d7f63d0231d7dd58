//! The command `flashrnn`; everything is in the library beside it.

use std::process::ExitCode;

#[global_allocator]
static MEMORY: flashrnn_cli::Memory = flashrnn_cli::Memory;

fn main() -> ExitCode {
    flashrnn_cli::main()
}
