//! Tests of driver behaviour that WGSL does not guarantee: running long loops to their end, exact
//! conversion of f16, and full subgroups.

use std::sync::{Arc, OnceLock};

use flashrnn_core::{Error, Result};

use crate::call::Params;
use crate::kernels::recorder::Recorder;
use crate::kernels::{Kernel, Kernels};
use crate::memory::binding::Binding;
use crate::programs;
use crate::programs::tensors::ProbeTensors;

/// Iterations of the long loop: more than the 65,535 after which Mesa 22.3's lavapipe silently ends
/// a loop.
const LONG: u32 = 70_000;

/// The results of the probes on one device. A probe runs on first use and waits for the device.
#[derive(Default)]
pub(crate) struct Probes {
    long_loops: OnceLock<bool>,
    native_f16_exact: OnceLock<bool>,
    full_subgroups: OnceLock<bool>,
}

impl Probes {
    /// Returns whether the driver runs a loop of [`LONG`] iterations to its end.
    pub fn long_loops(&self, kernels: &Kernels) -> Result<bool> {
        cached(&self.long_loops, || {
            let kernel = kernels.get(&programs::long_loops(), "long_loops")?;
            let params = Params { time: LONG, ..Params::default() };
            Ok(result(kernels, &kernel, &params, 1)? == [xorshift(LONG)])
        })
    }

    /// Returns whether the driver converts every f16 exactly. Some flush subnormals to zero.
    pub fn native_f16_exact(&self, kernels: &Kernels) -> Result<bool> {
        cached(&self.native_f16_exact, || {
            let kernel = kernels.get(&programs::native_f16(), "native_f16");
            returns(kernels, kernel, &Params::default(), (1 << 16) / 128, [0])
        })
    }

    /// Returns whether all subgroups have the size that the device states, and shuffle correctly.
    pub fn full_subgroups(&self, kernels: &Kernels) -> Result<bool> {
        cached(&self.full_subgroups, || {
            let size = kernels.device.adapter().subgroup;
            let params = Params { time: size as u32, ..Params::default() };
            let kernel = kernels.get(&programs::subgroups(), "subgroups");
            returns(kernels, kernel, &params, 1, [u32::MAX; 256 / 32])
        })
    }
}

fn cached(answer: &OnceLock<bool>, probe: impl FnOnce() -> Result<bool>) -> Result<bool> {
    match answer.get() {
        Some(&known) => Ok(known),
        None => probe().map(|found| *answer.get_or_init(|| found)),
    }
}

/// Returns whether a kernel computes `want`. Returns false if the driver cannot compile it.
fn returns<const WORDS: usize>(
    kernels: &Kernels,
    kernel: Result<Arc<Kernel>>,
    params: &Params,
    groups: usize,
    want: [u32; WORDS],
) -> Result<bool> {
    match kernel {
        Err(Error::Compile { .. }) => Ok(false),
        kernel => Ok(result(kernels, &*kernel?, params, groups)? == want),
    }
}

/// Runs a kernel and returns the words that it wrote.
fn result<const WORDS: usize>(
    kernels: &Kernels,
    kernel: &Kernel,
    params: &Params,
    groups: usize,
) -> Result<[u32; WORDS]> {
    let device = &kernels.device;
    let words = device.zeroed::<u32>(WORDS)?;
    device.scope(0, || {
        let mut recorder = Recorder::new(kernels);
        let tensors = ProbeTensors { result: Binding::whole(&words.buffer) };
        recorder.run(kernel, params, tensors, groups);
        recorder.submit();
        Ok(())
    })?;
    let words = device.download(words.view())?;
    Ok(std::array::from_fn(|i| words[i]))
}

/// Returns what `probe/long_loops.wgsl` computes in `iterations` iterations.
fn xorshift(iterations: u32) -> u32 {
    (0..iterations).fold(1, |mut value: u32, _| {
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
        assert!(wgpu.probes.long_loops(&wgpu.kernels).unwrap());
        // A driver that ended it early would return another value.
        assert_ne!(xorshift(LONG), xorshift(65_535));
    }

    /// True for all drivers that these tests have run on. On others, sums are added in workgroup
    /// memory.
    #[test]
    fn subgroups_are_full() {
        let Some(wgpu) = testing::wgpu() else { return };
        let size = wgpu.device.adapter().subgroup;
        println!("subgroups of {size}");
        assert!(size == 1 || wgpu.probes.full_subgroups(&wgpu.kernels).unwrap());
    }

    /// True for all drivers that these tests have run on. On others, f16 is converted by integer
    /// operations, which no numerical test covers.
    #[test]
    fn the_driver_converts_f16_exactly() {
        let Some(wgpu) = testing::wgpu() else { return };
        assert!(wgpu.probes.native_f16_exact(&wgpu.kernels).unwrap());
    }
}
