use super::finite::finite;
use crate::{Cell, Gate, Real};

/// The sLSTM of xLSTM (Beck et al. 2024, arXiv:2405.04517, section 2.2), with an exponential input
/// gate, a normaliser state `n` and a stabiliser state `m`:
///
/// ```text
/// l = ln σ(f) + m      m' = i where n = 0, else max(i, l)
/// i' = exp(i - m')     f' = exp(min(l - m', 0))
/// c' = f' c + i' tanh z    n' = max(f' n + i', 1)    h' = σ(o) c' / n'
/// ```
///
/// `m` only rescales `c` and `n`, so every gradient treats it as a constant: incoming gradients for
/// `m` are ignored, and the gradient returned for it is 0. The min in f' and the max in n' are only
/// guards, and gradients pass through them. The other gradients are nevertheless exact for a loss
/// on h, if the initial state is zeros or an earlier `last`.
///
/// Infinite gates yield the limits of the formulas and finite gradients. An infinite input gate is
/// replaced by the largest f32 of its sign, ±3.4e38. Where n = 0, `i = -∞` therefore yields
/// `h' = σ(o) tanh z`, like every finite `i`, and any later input outweighs it; where n > 0,
/// `i = -∞` masks the input of the step.
#[derive(Clone, Copy, Debug, Default)]
pub struct Slstm;

/// The intermediate values that the forward and the backward pass share.
struct Activations<R> {
    input: R,
    forget: R,
    z: R,
    o: R,
    c: R,
    n: R,
    m: R,
}

impl<R: Real> Activations<R> {
    #[inline(always)]
    fn new([_, c, n, m]: [R; 4], [i, f, z, o]: [R; 4]) -> Self {
        let zero = R::lit(0.0);
        let i = finite(i);
        let l = f.log_sigmoid() + m.stop_gradient();
        let m = R::select(n.gt(zero), i.clamp_min(l), i).stop_gradient();
        let input = (i - m).exp();
        let decay = l - m;
        let forget = decay.clamp_max(zero).with_gradient_of(decay).exp();
        let z = z.tanh();
        let c = forget * c + input * z;
        let n = forget * n + input;
        let n = n.clamp_min(R::lit(1.0)).with_gradient_of(n);
        Self { input, forget, z, o: o.sigmoid(), c, n, m }
    }
}

impl Cell for Slstm {
    const NAME: &'static str = "slstm";
    const STATES: &'static [&'static str] = &["h", "c", "n", "m"];
    const GATES: &'static [Gate] =
        &[Gate::both("i"), Gate::both("f"), Gate::both("z"), Gate::both("o")];
    const WIDE: &'static [usize] = &[3];
    // i and f enter exponentials, exp(i - m') and exp(l - m'), and bf16 numbers near -90 are 0.5
    // apart.
    const WIDE_GATES: &'static [usize] = &[0, 1];
    const CONSTANT: &'static [usize] = &[3];
    const BUILT_IN: bool = true;
    type State<R: Real> = [R; 4];
    type Gates<R: Real> = [R; 4];

    #[inline(always)]
    fn forward<R: Real>(&self, state: [R; 4], gates: [R; 4]) -> [R; 4] {
        let p = Activations::new(state, gates);
        [p.o * (p.c / p.n), p.c, p.n, p.m]
    }

    #[inline(always)]
    fn backward<R: Real>(
        &self,
        state: [R; 4],
        gates: [R; 4],
        [d_h, d_c, d_n, _]: [R; 4],
    ) -> ([R; 4], [R; 4]) {
        let zero = R::lit(0.0);
        let [_, c, n, _] = state;
        let p = Activations::new(state, gates);
        let ratio = p.c / p.n;
        // h = o c / n
        let d_ratio = d_h * (p.o / p.n);
        let d_c = d_c + d_ratio;
        let d_n = d_n - d_ratio * ratio;
        let d_i = (d_c * p.z + d_n) * p.input;
        let d_f = (d_c * c + d_n * n) * (p.forget * (-gates[1]).sigmoid());
        let d_z = d_c * (p.input * gates[2].tanh_and_slope().1);
        let d_o = d_h * (ratio * gates[3].sigmoid_and_slope().1);
        ([zero, d_c * p.forget, d_n * p.forget, zero], [d_i, d_f, d_z, d_o])
    }
}
