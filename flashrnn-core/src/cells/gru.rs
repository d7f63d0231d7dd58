use super::finite::finite;
use crate::{Cell, Gate, Real};

/// The gated recurrent unit (Cho et al. 2014) in the variant of cuDNN and PyTorch's `nn.GRU`, which
/// applies the reset gate to the recurrent part of the candidate, bias included:
///
/// ```text
/// r = σ(g_r)    z = σ(g_z)    n = tanh(n_x + r n_h)    h' = z h + (1 - z) n
/// ```
///
/// `n_h` takes only recurrent input and `n_x` only external input, each with its own bias (`b_hn`,
/// `b_in`). An infinite `n_h` is replaced by the largest f32 of its sign, so that a reset gate of 0
/// also removes an infinity.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gru;

impl Cell for Gru {
    const NAME: &'static str = "gru";
    const STATES: &'static [&'static str] = &["h"];
    const GATES: &'static [Gate] =
        &[Gate::recurrent("n_h"), Gate::both("r"), Gate::both("z"), Gate::external("n_x")];
    const BUILT_IN: bool = true;
    type State<R: Real> = [R; 1];
    type Gates<R: Real> = [R; 4];

    #[inline(always)]
    fn forward<R: Real>(&self, [h]: [R; 1], [n_h, g_r, g_z, n_x]: [R; 4]) -> [R; 1] {
        let n_h = finite(n_h);
        let r = g_r.sigmoid();
        let z = g_z.sigmoid();
        let n = (n_x + r * n_h).tanh();
        [z * h + (R::lit(1.0) - z) * n]
    }

    #[inline(always)]
    fn backward<R: Real>(
        &self,
        [h]: [R; 1],
        [n_h, g_r, g_z, n_x]: [R; 4],
        [d_h]: [R; 1],
    ) -> ([R; 1], [R; 4]) {
        let n_h = finite(n_h);
        let (r, slope_r) = g_r.sigmoid_and_slope();
        let (z, slope_z) = g_z.sigmoid_and_slope();
        let (n, slope_n) = (n_x + r * n_h).tanh_and_slope();
        let d_n_x = d_h * ((R::lit(1.0) - z) * slope_n);
        let d_r = d_n_x * (n_h * slope_r);
        let d_z = d_h * ((h - n) * slope_z);
        ([d_h * z], [d_n_x * r, d_r, d_z, d_n_x])
    }
}
