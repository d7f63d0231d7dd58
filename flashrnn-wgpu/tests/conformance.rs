//! Tests the properties that every backend must have, on a device that wgpu finds.
//!
//! WGSL allows compilers to assume that there are no infinities and no NaN, to ignore the sign of a
//! zero, and to flush subnormals. Drivers of GPUs do so; drivers that run on the CPU do not.

use std::sync::OnceLock;

use flashrnn_wgpu::{Wgpu, testing};

/// Returns one of two devices for all tests on a GPU, so that each kernel is compiled once per
/// device. NVIDIA's driver 580 may hang if a process opens and closes dozens of devices from many
/// threads.
fn shared<const ANOTHER: usize>() -> Option<Wgpu> {
    static DEVICES: [OnceLock<Option<Wgpu>>; 2] = [const { OnceLock::new() }; 2];
    DEVICES[ANOTHER].get_or_init(testing::wgpu).clone()
}

fn on_gpu() -> Option<Wgpu> {
    shared::<0>().filter(|wgpu| !wgpu.is_cpu())
}

/// Returns a new device for each test on the CPU. A Mesa device keeps about 150 of our kernels and
/// recompiles those that it dropped, but it finds kernels that another device compiled on disk.
fn on_cpu() -> Option<Wgpu> {
    shared::<0>().filter(Wgpu::is_cpu).and_then(|_| testing::wgpu())
}

mod on_cpu {
    flashrnn_testsuite::conformance!(if_available: super::on_cpu(), same_bits_as: [super::shared::<1>()], skip: []);
}

mod on_gpu {
    flashrnn_testsuite::conformance!(if_available: super::on_gpu(), same_bits_as: [super::shared::<1>()], skip: [
        ("infinite_gates", "WGSL does not guarantee infinities"),
        ("nan_stays_nan", "WGSL does not guarantee NaN"),
        ("operations_on_subnormals", "WGSL does not guarantee subnormals"),
        ("operations_on_special_values", "WGSL does not guarantee infinities, NaN and the sign of a zero"),
    ]);

    /// Per-step kernels. Large heads use them, and on the CPU all but the smallest heads.
    mod alternating {
        use flashrnn_wgpu::{Family, Wgpu};

        fn alternating() -> Option<Wgpu> {
            super::super::on_gpu().map(|wgpu| wgpu.with_family(Family::Alternating))
        }

        flashrnn_testsuite::conformance!(if_available: alternating(), skip: [
            ("infinite_gates", "WGSL does not guarantee infinities"),
            ("nan_stays_nan", "WGSL does not guarantee NaN"),
            ("operations_on_subnormals", "WGSL does not guarantee subnormals"),
            ("operations_on_special_values", "WGSL does not guarantee infinities, NaN and the sign of a zero"),
        ]);
    }
}
