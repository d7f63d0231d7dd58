//! The properties of adapters.

/// Adapter properties that drive kernel selection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adapter {
    /// Whether the driver runs on the CPU.
    pub cpu: bool,
    /// Maximum number of invocations in a workgroup.
    pub invocations: usize,
    /// Maximum bytes of workgroup memory.
    pub workgroup_bytes: usize,
    /// Whether there are 16 x 16 cooperative matrices that multiply f16 and add in f32, in
    /// subgroups of 32.
    pub matrix: bool,
    /// The number of threads of a subgroup if kernels may use its operations, or else 1.
    pub subgroup: usize,
}

// Drivers that run on the CPU take seconds to compile a kernel, so they get fewer and shorter ones.
impl Adapter {
    /// Returns whether the per-step kernels use subgroup operations. Drivers that run on the CPU
    /// take twice as long with them.
    pub fn subgroups(self) -> bool {
        self.subgroup > 1 && !self.cpu
    }

    /// Returns whether heads of `head_dim` units have kernels for word-aligned pairs of 16-bit
    /// units, which serve tensors that begin at an even element.
    pub fn word_aligned(self, head_dim: usize) -> bool {
        head_dim.is_multiple_of(2) && !self.cpu
    }
}

/// Maximum number of iterations of a loop. Some drivers (Mesa 22.3's lavapipe) silently end a loop
/// after 65,535.
pub const MAX_LOOP: usize = 32768;

/// Returns [`Adapter::subgroup`] for a device with subgroups of `min` to `max` threads. Kernels
/// need subgroups of a single size that divides a workgroup of 256. `has` says whether the device
/// has subgroup operations.
pub fn subgroup(has: bool, min: u32, max: u32) -> usize {
    if has && min == max && [8, 16, 32, 64, 128].contains(&max) { max as usize } else { 1 }
}

#[cfg(test)]
pub mod examples {
    use super::Adapter;

    /// An H200 through Vulkan.
    pub const H200: Adapter = Adapter {
        cpu: false,
        invocations: 1024,
        workgroup_bytes: 48 << 10,
        matrix: false,
        subgroup: 32,
    };
    /// The limits that every device has.
    pub const MINIMAL: Adapter = Adapter {
        cpu: false,
        invocations: 256,
        workgroup_bytes: 16 << 10,
        matrix: false,
        subgroup: 1,
    };
}

#[cfg(test)]
mod tests {
    use super::examples::{H200, MINIMAL};
    use super::*;
    use crate::select::Preferences;

    #[test]
    fn subgroups_of_one_size() {
        assert_eq!(
            [8, 16, 32, 64, 128].map(|size| subgroup(true, size, size)),
            [8, 16, 32, 64, 128]
        );
        assert_eq!([4, 24, 256].map(|size| subgroup(true, size, size)), [1; 3]);
        assert_eq!(
            [subgroup(true, 32, 64), subgroup(false, 32, 32), subgroup(false, 0, 0)],
            [1; 3]
        );
        let cpu = Adapter { cpu: true, ..H200 };
        assert_eq!(
            [H200, MINIMAL, cpu].map(|adapter| Preferences::default().adapter(adapter).subgroups()),
            [true, false, false]
        );
        assert!(
            Preferences { as_on_gpus: true, ..Preferences::default() }.adapter(cpu).subgroups()
        );
    }
}
