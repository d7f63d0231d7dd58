//! The properties that every backend must have, on a device that wgpu finds.
//!
//! WGSL lets compilers assume that there are no infinities and no NaN, ignore the sign of a zero, and flush what is below the smallest
//! normal number. Drivers that run on the CPU do none of that, GPUs do.

use std::sync::OnceLock;

use flashrnn_wgpu::{Wgpu, testing};

/// One device for all tests, so that each kernel is compiled once; on the CPU or not.
fn wgpu(on_cpu: bool) -> Option<Wgpu> {
    static WGPU: OnceLock<Option<Wgpu>> = OnceLock::new();
    WGPU.get_or_init(testing::wgpu).clone().filter(|wgpu| wgpu.is_cpu() == on_cpu)
}

/// Another device. One as well: where a process opens and closes dozens from many threads, NVIDIA's driver 580 may hang.
fn another() -> Option<Wgpu> {
    static WGPU: OnceLock<Option<Wgpu>> = OnceLock::new();
    WGPU.get_or_init(testing::wgpu).clone()
}

mod on_cpu {
    flashrnn_testsuite::conformance!(where_found: super::wgpu(true), same_bits_as: [super::another()], skip: []);
}

mod on_gpu {
    flashrnn_testsuite::conformance!(where_found: super::wgpu(false), same_bits_as: [super::another()], skip: [
        ("nan_stays_nan", "WGSL promises nothing of NaN"),
        ("operations_on_denormals", "WGSL promises nothing of what is below the smallest normal number"),
        ("operations_on_special_values", "WGSL promises nothing of infinities, NaN and the sign of a zero"),
    ]);

    /// Where no kernel is fused: what large heads get anyhow, and on the CPU all but the smallest.
    mod alternating {
        use flashrnn_wgpu::{Family, Wgpu};

        fn alternating() -> Option<Wgpu> {
            super::super::wgpu(false).map(|wgpu| wgpu.with_family(Family::Alternating))
        }

        flashrnn_testsuite::conformance!(where_found: alternating(), skip: [
            ("nan_stays_nan", "WGSL promises nothing of NaN"),
            ("operations_on_denormals", "WGSL promises nothing of what is below the smallest normal number"),
            ("operations_on_special_values", "WGSL promises nothing of infinities, NaN and the sign of a zero"),
        ]);
    }
}
