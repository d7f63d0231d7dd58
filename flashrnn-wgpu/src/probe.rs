//! Whether the driver runs long loops to their end.

use flashrnn_core::Result;

use crate::call::Params;
use crate::device::Device;
use crate::kernel::{Bound, Call, Kernel};
use crate::programs;

/// More than the 65,535 rounds after which Mesa 22.3's lavapipe ends a loop, and says nothing.
const ROUNDS: u32 = 70_000;

/// Whether the driver runs a loop of [`ROUNDS`] to its end.
pub fn long_loops(device: &Device) -> Result<bool> {
    let kernel = Kernel::get(device, &programs::probe(), "probe")?;
    let result = device.alloc::<u32>(1)?;
    device.scope(0, || {
        let params = Params { time: ROUNDS, ..Params::default() };
        let mut call = Call::new(device);
        call.run(&kernel, &params, &[Bound::whole(&result.buffer)], 1);
        call.submit();
        Ok(())
    })?;
    Ok(device.download(result.view())? == [expected(ROUNDS)])
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
}
