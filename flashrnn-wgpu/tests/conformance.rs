//! The properties that every backend must have, on a device that wgpu finds.
//!
//! WGSL lets compilers assume that there are no infinities and no NaN, ignore the sign of a zero,
//! and flush what is below the smallest normal number. Drivers that run on the CPU do none of that,
//! GPUs do.

use std::sync::OnceLock;

use flashrnn_wgpu::{Wgpu, testing};

/// One device for all tests on a GPU, so that each kernel is compiled once, and another. More would
/// not do: where a process opens and closes dozens from many threads, NVIDIA's driver 580 may hang.
fn shared<const ANOTHER: usize>() -> Option<Wgpu> {
    static DEVICES: [OnceLock<Option<Wgpu>>; 2] = [const { OnceLock::new() }; 2];
    DEVICES[ANOTHER].get_or_init(testing::wgpu).clone()
}

fn on_gpu() -> Option<Wgpu> {
    shared::<0>().filter(|wgpu| !wgpu.is_cpu())
}

/// On the CPU a device for each test: Mesa's keeps about 150 of our kernels and compiles those
/// again that it dropped, but finds on disk what another device has compiled.
fn on_cpu() -> Option<Wgpu> {
    shared::<0>().filter(Wgpu::is_cpu).and_then(|_| testing::wgpu())
}

mod on_cpu {
    flashrnn_testsuite::conformance!(if_available: super::on_cpu(), same_bits_as: [super::shared::<1>()], skip: []);
}

mod on_gpu {
    flashrnn_testsuite::conformance!(if_available: super::on_gpu(), same_bits_as: [super::shared::<1>()], skip: [
        ("infinite_gates", "WGSL promises nothing of infinities"),
        ("nan_stays_nan", "WGSL promises nothing of NaN"),
        ("operations_on_denormals", "WGSL promises nothing of what is below the smallest normal number"),
        ("operations_on_special_values", "WGSL promises nothing of infinities, NaN and the sign of a zero"),
    ]);

    /// Where no kernel is fused: what large heads get anyhow, and on the CPU all but the smallest.
    mod alternating {
        use flashrnn_wgpu::{Family, Wgpu};

        fn alternating() -> Option<Wgpu> {
            super::super::on_gpu().map(|wgpu| wgpu.with_family(Family::Alternating))
        }

        flashrnn_testsuite::conformance!(if_available: alternating(), skip: [
            ("infinite_gates", "WGSL promises nothing of infinities"),
            ("nan_stays_nan", "WGSL promises nothing of NaN"),
            ("operations_on_denormals", "WGSL promises nothing of what is below the smallest normal number"),
            ("operations_on_special_values", "WGSL promises nothing of infinities, NaN and the sign of a zero"),
        ]);
    }
}
