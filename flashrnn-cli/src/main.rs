//! The command `flashrnn`. The library crate contains the code.

use std::process::ExitCode;

#[global_allocator]
static MEMORY: flashrnn_cli::Memory = flashrnn_cli::Memory;

fn main() -> ExitCode {
    flashrnn_cli::main()
}
