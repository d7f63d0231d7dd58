//! The properties that every backend must have, on a device that wgpu finds.

use std::sync::OnceLock;

use flashrnn_wgpu::{Wgpu, testing};

/// One device for all tests, so that each kernel is compiled once.
fn wgpu() -> Option<Wgpu> {
    static WGPU: OnceLock<Option<Wgpu>> = OnceLock::new();
    WGPU.get_or_init(testing::wgpu).clone()
}

flashrnn_testsuite::conformance!(where_found: wgpu(), same_bits_as: [testing::wgpu()], skip: []);

/// The same where no kernel is fused: what large heads get anyhow.
mod alternating {
    use flashrnn_wgpu::{Family, Wgpu};

    /// Drivers on the CPU are slow, and there all heads but the smallest get these kernels above.
    fn wgpu() -> Option<Wgpu> {
        let wgpu = super::wgpu()?;
        if wgpu.is_cpu() {
            println!("skipped: a driver on the CPU, where few heads are fused");
            return None;
        }
        Some(wgpu.with_family(Family::Alternating))
    }

    flashrnn_testsuite::conformance!(where_found: wgpu(), skip: []);
}
