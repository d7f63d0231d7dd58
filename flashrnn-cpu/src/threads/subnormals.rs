//! What becomes of numbers below the smallest normal one.
//!
//! Processors take a hundred times as long for an operation on subnormal numbers. States and
//! gradients that fade pass through them on their way to zero, so by default they are taken for
//! zero.

/// Whether kernels compute with subnormal numbers of f32 and f64, which takes 10 to 190 times as
/// long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Subnormals {
    /// Operations take operands below the smallest normal number (1.2e-38 in f32, 2.2e-308 in f64)
    /// for zero, and return zero in place of such results. f16 keeps its own subnormals, which are
    /// normal numbers of f32; those of bf16 are those of f32, and are flushed. Without effect where
    /// the processor has no such mode or it can't be reached (WebAssembly).
    #[default]
    Flush,
    /// As IEEE 754 demands.
    Keep,
}

impl Subnormals {
    /// Sets the mode of this thread until the result is dropped, on return or on a panic.
    pub(crate) fn enter(self) -> Mode {
        let before = control::read();
        let wanted = match self {
            Self::Flush => before | control::FLUSH,
            Self::Keep => before & !control::FLUSH,
        };
        control::write(wanted);
        Mode { before }
    }
}

/// Gives the thread back the mode it had.
pub(crate) struct Mode {
    before: control::Register,
}

impl Drop for Mode {
    fn drop(&mut self) {
        control::write(self.before);
    }
}

/// The register that holds the mode. Rust compiles arithmetic for the default mode and does not
/// promise what happens in another one. What it may do is compute before, after or at compile time
/// what the source computes between two writes, by the rules of the default mode. That changes
/// subnormal numbers only, of which `Flush` promises nothing exact, and kernels are functions
/// called through pointers, across which nothing moves.
#[cfg(target_arch = "x86_64")]
mod control {
    use std::arch::asm;

    pub type Register = u32;
    /// Flush-to-zero (bit 15) and denormals-are-zero (bit 6).
    pub const FLUSH: Register = 1 << 15 | 1 << 6;

    pub fn read() -> Register {
        let mut mxcsr = 0;
        // SAFETY: every x86-64 processor has the instruction, which writes 4 bytes to the address.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut mxcsr, options(nostack, preserves_flags)) };
        mxcsr
    }

    /// Writes what `read` returned, but for the bits of `FLUSH`.
    pub fn write(mxcsr: Register) {
        // SAFETY: reads 4 bytes from the address; no reserved bit is set. For the mode see this
        // module's documentation.
        unsafe {
            asm!("ldmxcsr [{}]", in(reg) &raw const mxcsr, options(nostack, preserves_flags))
        };
    }
}

#[cfg(target_arch = "aarch64")]
mod control {
    use std::arch::asm;

    pub type Register = u64;
    /// FZ: operands and results of f32 and f64. FZ16, for arithmetic in f16, is left alone.
    pub const FLUSH: Register = 1 << 24;

    pub fn read() -> Register {
        let fpcr;
        // SAFETY: every such processor has the register, and reading it changes nothing.
        unsafe { asm!("mrs {}, fpcr", out(reg) fpcr, options(nomem, nostack, preserves_flags)) };
        fpcr
    }

    /// Writes what `read` returned, but for the bits of `FLUSH`.
    pub fn write(fpcr: Register) {
        // SAFETY: no reserved bit is set. For the mode see this module's documentation.
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
    fn modes_nest_and_end() {
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
            panic!("with the mode set");
        });
        assert!(panicked.is_err());
        assert_eq!(control::read() & control::FLUSH, before & control::FLUSH);
    }
}
