//! The properties that every backend must have, on the CPU: with the machine's best instruction set, and with the others.

use flashrnn_cpu::{Cpu, Level};

flashrnn_testsuite::conformance!(
    Cpu::new(),
    same_bits_as: [Cpu::with_threads(1).unwrap(), Cpu::with_threads(2).unwrap(), Cpu::with_threads(5).unwrap()],
    skip: []
);

/// A backend of this level, or a portable one on a machine that lacks it.
fn cpu(level: Level) -> Cpu {
    Cpu::new().with_level(level).unwrap_or_else(|lacking| {
        println!("{lacking}: the portable kernels are tested in its place");
        Cpu::new().with_level(Level::Portable).expect("every machine has it")
    })
}

mod avx2 {
    use super::{Level, cpu};
    flashrnn_testsuite::conformance!(cpu(Level::Avx2), skip: []);
}

mod portable {
    use super::{Level, cpu};
    flashrnn_testsuite::conformance!(cpu(Level::Portable), skip: []);
}
