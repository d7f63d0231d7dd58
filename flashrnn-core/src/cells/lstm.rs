use crate::{Cell, Gate, Real};

/// The long short-term memory (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al.
/// 2000), as in PyTorch's `nn.LSTM`, whose gate `g` is called `z` here:
///
/// ```text
/// c' = σ(f) c + σ(i) tanh z    h' = σ(o) tanh c'
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Lstm;

impl Cell for Lstm {
    const NAME: &'static str = "lstm";
    const STATES: &'static [&'static str] = &["h", "c"];
    const GATES: &'static [Gate] =
        &[Gate::both("i"), Gate::both("f"), Gate::both("z"), Gate::both("o")];
    const BUILT_IN: bool = true;
    type State<R: Real> = [R; 2];
    type Gates<R: Real> = [R; 4];

    #[inline(always)]
    fn forward<R: Real>(&self, [_, c]: [R; 2], [i, f, z, o]: [R; 4]) -> [R; 2] {
        let c = f.sigmoid() * c + i.sigmoid() * z.tanh();
        [o.sigmoid() * c.tanh(), c]
    }

    #[inline(always)]
    fn backward<R: Real>(
        &self,
        [_, c]: [R; 2],
        [i, f, z, o]: [R; 4],
        [d_h, d_c]: [R; 2],
    ) -> ([R; 2], [R; 4]) {
        let (i, slope_i) = i.sigmoid_and_slope();
        let (f, slope_f) = f.sigmoid_and_slope();
        let (z, slope_z) = z.tanh_and_slope();
        let (o, slope_o) = o.sigmoid_and_slope();
        let (tanh_c, slope_c) = (f * c + i * z).tanh_and_slope();
        let d_c = d_c + d_h * (o * slope_c);
        let d_i = d_c * (z * slope_i);
        let d_f = d_c * (c * slope_f);
        let d_z = d_c * (i * slope_z);
        let d_o = d_h * (tanh_c * slope_o);
        ([R::lit(0.0), d_c * f], [d_i, d_f, d_z, d_o])
    }
}
