//! Adapter properties that drive kernel selection.

/// Adapter properties that drive kernel selection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adapter {
    /// The driver runs on the CPU.
    pub cpu: bool,
    /// Invocations that a workgroup may have.
    pub invocations: usize,
    /// Bytes of workgroup memory that a workgroup may have.
    pub workgroup_bytes: usize,
    /// There are cooperative matrices of 16 x 16, f16 in and f32 out, in subgroups of 32.
    pub matrix: bool,
    /// Threads of a subgroup where its operations may add sums up, else 1.
    pub subgroup: usize,
}

/// A CPU's drivers compile a kernel for seconds, so that they have fewer and shorter ones.
impl Adapter {
    /// Whether the kernels of one step use subgroup operations. A CPU's drivers would take twice as
    /// long to run them, too.
    pub fn subgroups(self) -> bool {
        self.subgroup > 1 && !self.cpu
    }

    /// Whether there are kernels for heads of this size whose pairs of 16-bit units are whole
    /// words, as they are in tensors that begin at an even element.
    pub fn words(self, head_dim: usize) -> bool {
        head_dim.is_multiple_of(2) && !self.cpu
    }
}

/// [`Adapter::subgroup`]: all subgroups must have this size and be parts of a workgroup of 256. `has`: the device has such operations, on
/// subgroups of `least` to `most` threads.
pub fn subgroup(has: bool, least: u32, most: u32) -> usize {
    if has && least == most && [8, 16, 32, 64, 128].contains(&most) { most as usize } else { 1 }
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
    /// What every device has.
    pub const LEAST: Adapter = Adapter {
        cpu: false,
        invocations: 256,
        workgroup_bytes: 16 << 10,
        matrix: false,
        subgroup: 1,
    };
}

#[cfg(test)]
mod tests {
    use super::examples::{H200, LEAST};
    use super::*;
    use crate::select::Choice;

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
            [H200, LEAST, cpu].map(|adapter| Choice::default().adapter(adapter).subgroups()),
            [true, false, false]
        );
        assert!(Choice { as_on_gpus: true, ..Choice::default() }.adapter(cpu).subgroups());
    }
}
