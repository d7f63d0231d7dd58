//! The Elman network with a rectifier, PyTorch's `nn.RNN(nonlinearity="relu")`.

use flashrnn_core::{Cell, Gate, Real};

/// `h' = max(g, 0)`. As in PyTorch, the slope at 0 is 0, and NaN stays NaN.
#[derive(Clone)]
pub(crate) struct ElmanRelu;

impl Cell for ElmanRelu {
    const NAME: &'static str = "elman_relu";
    const STATES: &'static [&'static str] = &["h"];
    const GATES: &'static [Gate] = &[Gate::both("g")];
    type State<R: Real> = [R; 1];
    type Gates<R: Real> = [R; 1];

    #[inline(always)]
    fn forward<R: Real>(&self, _: [R; 1], [g]: [R; 1]) -> [R; 1] {
        let zero = R::lit(0.0);
        [R::select(g.gt(zero), g, g.clamp_min(zero).stop_gradient())]
    }
}
