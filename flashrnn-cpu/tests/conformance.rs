//! The properties that every backend must have, on the CPU.

use flashrnn_cpu::Cpu;

flashrnn_testsuite::conformance!(
    Cpu::new(),
    same_bits_as: [Cpu::with_threads(1).unwrap(), Cpu::with_threads(2).unwrap(), Cpu::with_threads(5).unwrap()],
    skip: []
);
