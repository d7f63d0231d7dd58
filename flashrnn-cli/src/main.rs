//! The command `flashrnn`; everything is in the library beside it.

use std::process::ExitCode;

fn main() -> ExitCode {
    flashrnn_cli::main()
}
