//! What a driver does that WGSL does not promise: whether it runs long loops to their end, and converts f16 exactly.

use flashrnn_core::{Error, Result};

use crate::call::Params;
use crate::device::Device;
use crate::kernel::{Bound, Call, Kernel};
use crate::programs;

/// More than the 65,535 rounds after which Mesa 22.3's lavapipe ends a loop, and says nothing.
const ROUNDS: u32 = 70_000;

/// Whether the driver runs a loop of [`ROUNDS`] to its end.
pub fn long_loops(device: &Device) -> Result<bool> {
    let kernel = Kernel::get(device, &programs::probe(), "probe")?;
    let params = Params { time: ROUNDS, ..Params::default() };
    Ok(result(device, &kernel, &params, 1)? == expected(ROUNDS))
}

/// Whether the driver's own conversion of f16 gives every number as it is: it may make zeros of the smallest.
pub fn unpacks(device: &Device) -> Result<bool> {
    match Kernel::get(device, &programs::unpacks(), "unpacks") {
        // Not every device has it.
        Err(Error::Compile { .. }) => Ok(false),
        kernel => Ok(result(device, &*kernel?, &Params::default(), (1 << 16) / 128)? == 0),
    }
}

/// The word that a kernel gives.
fn result(device: &Device, kernel: &Kernel, params: &Params, groups: usize) -> Result<u32> {
    let word = device.alloc::<u32>(1)?;
    device.scope(0, || {
        let mut call = Call::new(device);
        call.run(kernel, params, &[Bound::whole(&word.buffer)], groups);
        call.submit();
        Ok(())
    })?;
    Ok(device.download(word.view())?[0])
}

/// What `probe.wgsl` gives after so many rounds.
fn expected(rounds: u32) -> u32 {
    (0..rounds).fold(1, |mut value: u32, _| {
        value ^= value << 13;
        value ^= value >> 17;
        value ^ value << 5
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn the_driver_ends_no_loop() {
        let Some(wgpu) = testing::wgpu() else { return };
        assert!(wgpu.device.long_loops().unwrap());
        // A driver that ended it would be found out.
        assert_ne!(expected(ROUNDS), expected(65_535));
    }

    /// So on all drivers that these tests have run on. Where it is not, f16 is converted by hand, and nothing tests the other way.
    #[test]
    fn the_driver_converts_f16_exactly() {
        let Some(wgpu) = testing::wgpu() else { return };
        assert!(wgpu.device.unpacks().unwrap());
    }
}
