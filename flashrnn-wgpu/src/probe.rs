//! What a driver does that WGSL does not promise: whether it runs long loops to their end, converts
//! f16 exactly, and fills subgroups.

use std::sync::Arc;

use flashrnn_core::{Error, Result};

use crate::call::Params;
use crate::device::Device;
use crate::kernels::{Bound, Call, Kernel};
use crate::programs;

/// More than the 65,535 rounds after which Mesa 22.3's lavapipe ends a loop, and says nothing.
const ROUNDS: u32 = 70_000;

/// Whether the driver runs a loop of [`ROUNDS`] to its end.
pub fn long_loops(device: &Device) -> Result<bool> {
    let kernel = Kernel::get(device, &programs::probe(), "probe")?;
    let params = Params { time: ROUNDS, ..Params::default() };
    Ok(result(device, &kernel, &params, 1)? == [expected(ROUNDS)])
}

/// Whether the driver's own conversion of f16 gives every number as it is: it may make zeros of the
/// smallest.
pub fn unpacks(device: &Device) -> Result<bool> {
    let kernel = Kernel::get(device, &programs::unpacks(), "unpacks");
    gives(device, kernel, &Params::default(), (1 << 16) / 128, [0])
}

/// Whether all subgroups have the size that the device says and shuffle as they should.
pub fn subgroups(device: &Device) -> Result<bool> {
    let params = Params { time: device.adapter().subgroup as u32, ..Params::default() };
    let kernel = Kernel::get(device, &programs::subgroups(), "subgroups");
    gives(device, kernel, &params, 1, [u32::MAX; 256 / 32])
}

/// Whether a kernel gives these words. Not every driver that has what it uses compiles it.
fn gives<const WORDS: usize>(
    device: &Device,
    kernel: Result<Arc<Kernel>>,
    params: &Params,
    groups: usize,
    words: [u32; WORDS],
) -> Result<bool> {
    match kernel {
        Err(Error::Compile { .. }) => Ok(false),
        kernel => Ok(result(device, &*kernel?, params, groups)? == words),
    }
}

/// The words that a kernel gives.
fn result<const WORDS: usize>(
    device: &Device,
    kernel: &Kernel,
    params: &Params,
    groups: usize,
) -> Result<[u32; WORDS]> {
    let words = device.zeroed::<u32>(WORDS)?;
    device.scope(0, || {
        let mut call = Call::new(device);
        call.run(kernel, params, &[Bound::whole(&words.buffer)], groups);
        call.submit();
        Ok(())
    })?;
    let words = device.download(words.view())?;
    Ok(std::array::from_fn(|i| words[i]))
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

    /// So on all drivers that these tests have run on. Where they are not, sums are added up in
    /// workgroup memory.
    #[test]
    fn subgroups_are_full() {
        let Some(wgpu) = testing::wgpu() else { return };
        let size = wgpu.device.adapter().subgroup;
        println!("subgroups of {size}");
        assert!(size == 1 || wgpu.device.subgroups().unwrap());
    }

    /// So on all drivers that these tests have run on. Where it is not, f16 is converted by hand,
    /// and nothing tests the other way.
    #[test]
    fn the_driver_converts_f16_exactly() {
        let Some(wgpu) = testing::wgpu() else { return };
        assert!(wgpu.device.unpacks().unwrap());
    }
}
