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

mod on_cpu {
    use flashrnn_wgpu::testing;
    flashrnn_testsuite::conformance!(where_found: super::wgpu(true), same_bits_as: [testing::wgpu()], skip: []);
}

mod on_gpu {
    use flashrnn_wgpu::testing;
    flashrnn_testsuite::conformance!(where_found: super::wgpu(false), same_bits_as: [testing::wgpu()], skip: [
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
