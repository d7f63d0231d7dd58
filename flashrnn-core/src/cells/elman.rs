use crate::{Cell, Gate, Real};

/// The Elman network (Elman 1990; PyTorch's `nn.RNN` with tanh): `h' = tanh g`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Elman;

impl Cell for Elman {
    const NAME: &'static str = "elman";
    const STATES: &'static [&'static str] = &["h"];
    const GATES: &'static [Gate] = &[Gate::both("g")];
    const BUILT_IN: bool = true;
    type State<R: Real> = [R; 1];
    type Gates<R: Real> = [R; 1];

    #[inline(always)]
    fn forward<R: Real>(&self, _: [R; 1], [g]: [R; 1]) -> [R; 1] {
        [g.tanh()]
    }

    #[inline(always)]
    fn backward<R: Real>(&self, _: [R; 1], [g]: [R; 1], [d_h]: [R; 1]) -> ([R; 1], [R; 1]) {
        let (_, slope) = g.tanh_and_slope();
        ([R::lit(0.0)], [d_h * slope])
    }
}
