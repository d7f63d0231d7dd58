//! The treatment of subnormal numbers.
//!
//! Operations on subnormal numbers take about a hundred times as long as others. States and
//! gradients that decay pass through subnormal numbers on their way to zero, so by default they are
//! flushed to zero.

/// Whether kernels flush subnormal numbers of f32 and f64 to zero or compute with them. Computing
/// with them makes a pass over such numbers 10 to 190 times slower.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Subnormals {
    /// Treats operands below the smallest normal number (1.2e-38 in f32, 2.2e-308 in f64) as zero,
    /// and replaces results below it by zero. The subnormals of f16 are normal numbers of f32 and
    /// are kept; those of bf16 are subnormals of f32 and are flushed. Has no effect if the
    /// processor has no such mode or the mode cannot be set (WebAssembly).
    #[default]
    Flush,
    /// Computes with subnormal numbers as IEEE 754 requires.
    Keep,
}

impl Subnormals {
    /// Sets this thread's mode until the result is dropped.
    pub(crate) fn enter(self) -> ModeGuard {
        let before = control::read();
        let mode = match self {
            Self::Flush => before | control::FLUSH,
            Self::Keep => before & !control::FLUSH,
        };
        control::write(mode);
        ModeGuard { before }
    }
}

/// Restores the thread's previous mode when dropped.
pub(crate) struct ModeGuard {
    before: control::Register,
}

impl Drop for ModeGuard {
    fn drop(&mut self) {
        control::write(self.before);
    }
}

/// The register that holds the mode.
///
/// Rust compiles floating-point arithmetic for the default mode and specifies nothing for others.
/// The compiler may evaluate arithmetic at compile time, or move it across a write of the register,
/// by the rules of the default mode. Either affects subnormal numbers only, for which `Flush` does
/// not promise exact results; and the kernels are functions called through pointers, across which
/// arithmetic does not move.
#[cfg(target_arch = "x86_64")]
mod control {
    use std::arch::asm;

    pub type Register = u32;
    /// Flush-to-zero (bit 15) and denormals-are-zero (bit 6).
    pub const FLUSH: Register = 1 << 15 | 1 << 6;

    pub fn read() -> Register {
        let mut mxcsr = 0;
        // SAFETY: every x86-64 processor has the instruction; it writes 4 bytes to the address.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut mxcsr, options(nostack, preserves_flags)) };
        mxcsr
    }

    /// Writes a value that `read` returned, in which only the bits of `FLUSH` may have changed.
    pub fn write(mxcsr: Register) {
        // SAFETY: reads 4 bytes from the address; no reserved bit is set. This module's
        // documentation discusses the mode.
        unsafe {
            asm!("ldmxcsr [{}]", in(reg) &raw const mxcsr, options(nostack, preserves_flags))
        };
    }
}

#[cfg(target_arch = "aarch64")]
mod control {
    use std::arch::asm;

    pub type Register = u64;
    /// FZ, for operands and results of f32 and f64. FZ16, for arithmetic in f16, is not changed.
    pub const FLUSH: Register = 1 << 24;

    pub fn read() -> Register {
        let fpcr;
        // SAFETY: every such processor has the register, and reading it changes nothing.
        unsafe { asm!("mrs {}, fpcr", out(reg) fpcr, options(nomem, nostack, preserves_flags)) };
        fpcr
    }

    /// Writes a value that `read` returned, in which only the bits of `FLUSH` may have changed.
    pub fn write(fpcr: Register) {
        // SAFETY: no reserved bit is set. This module's documentation discusses the mode.
        unsafe { asm!("msr fpcr, {}", in(reg) fpcr, options(nostack, preserves_flags)) };
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod control {
    pub type Register = u32;
    pub const FLUSH: Register = 0;

    pub fn read() -> Register {
        0
    }

    pub fn write(_: Register) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hint::black_box;

    fn halved(x: f32) -> f32 {
        black_box(black_box(x) * black_box(0.5))
    }

    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    #[test]
    fn modes_nest_and_are_restored() {
        let before = control::read();
        assert_ne!(halved(f32::MIN_POSITIVE), 0.0);
        {
            let _flush = Subnormals::Flush.enter();
            assert_eq!(halved(f32::MIN_POSITIVE), 0.0);
            assert_eq!(halved(f32::MIN_POSITIVE * 4.0), f32::MIN_POSITIVE * 2.0);
            {
                let _keep = Subnormals::Keep.enter();
                assert_ne!(halved(f32::MIN_POSITIVE), 0.0);
            }
            assert_eq!(halved(f32::MIN_POSITIVE), 0.0);
        }
        assert_eq!(control::read() & control::FLUSH, before & control::FLUSH);
        let panicked = std::panic::catch_unwind(|| {
            let _flush = Subnormals::Flush.enter();
            panic!("in flushing mode");
        });
        assert!(panicked.is_err());
        assert_eq!(control::read() & control::FLUSH, before & control::FLUSH);
    }
}
