//! Packs R and b in the order in which the kernels read them.

use flashrnn_core::{Element, Result};

use crate::engine::Engine;
use crate::kernels::recorder::Recorder;
use crate::memory::View;
use crate::memory::binding::Binding;
use crate::packed::Packed;
use crate::programs::tensors::PackTensors;
use crate::select;

impl Engine {
    /// Packs the weights.
    pub fn pack<T: Element, W: Element>(
        &self,
        r: View<'_, W>,
        b: View<'_, W>,
    ) -> Result<Packed<T>> {
        let [step, fused] = select::packed(&self.shapes, self.fused, self.programs.narrow());
        // One more piece, because b of the last of an odd number of units is read together with the
        // word after it.
        let buffer = self.device().zeroed::<u32>(4 * (step + fused + 1))?;
        self.device().scope(0, || {
            let mut params = self.params();
            let tensors = PackTensors {
                r: self.bind(Some(r), false, 0, &mut params.r_first),
                b: self.bind(Some(b), false, 1, &mut params.b_first),
                weights: Binding::whole(&buffer.buffer),
            };
            let mut recorder = Recorder::new(&self.wgpu.kernels);
            recorder.run(&self.pack, &params, tensors, step.div_ceil(64));
            if let Some(pack_fused) = &self.pack_fused {
                recorder.run(pack_fused, &params, tensors, fused.div_ceil(64));
            }
            recorder.submit();
            Ok(())
        })?;
        Ok(Packed::new(buffer))
    }
}
