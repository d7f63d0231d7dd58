//! Cells like a user's, with only a `forward`. They cover cases that the built-in cells don't.

use flashrnn_core::{Cell, Gate, Real};

/// A leaky integrator, `h' = h + a (tanh g - h)`: a cell with a parameter.
#[derive(Clone, Copy, Debug)]
pub struct Leaky {
    /// The rate at which h follows the gate, 0 to 1.
    pub a: f64,
}

impl Cell for Leaky {
    const NAME: &'static str = "leaky";
    const STATES: &'static [&'static str] = &["h"];
    const GATES: &'static [Gate] = &[Gate::both("g")];
    type State<R: Real> = [R; 1];
    type Gates<R: Real> = [R; 1];

    #[inline(always)]
    fn forward<R: Real>(&self, [h]: [R; 1], [g]: [R; 1]) -> [R; 1] {
        [h + R::lit(self.a) * (g.tanh() - h)]
    }
}

/// A cell with three states, two of them wide, and five gates, of which two take no external input
/// and one takes no recurrent input:
///
/// ```text
/// c' = σ(f) c + σ(i) tanh z    a' = (a + h tanh w) / 2    h' = σ(o) tanh(c' + a')
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Twin;

impl Cell for Twin {
    const NAME: &'static str = "twin";
    const STATES: &'static [&'static str] = &["h", "c", "a"];
    const GATES: &'static [Gate] = &[
        Gate::recurrent("w"),
        Gate::recurrent("f"),
        Gate::both("i"),
        Gate::both("z"),
        Gate::external("o"),
    ];
    const WIDE: &'static [usize] = &[1, 2];
    type State<R: Real> = [R; 3];
    type Gates<R: Real> = [R; 5];

    #[inline(always)]
    fn forward<R: Real>(&self, [h, c, a]: [R; 3], [w, f, i, z, o]: [R; 5]) -> [R; 3] {
        let c = f.sigmoid() * c + i.sigmoid() * z.tanh();
        let a = (a + h * w.tanh()) * R::lit(0.5);
        [o.sigmoid() * (c + a).tanh(), c, a]
    }
}

/// A cell without external input, in which every gate is recurrent and gradients treat the state c
/// as a constant:
///
/// ```text
/// c' = 0.9 c + 0.1 tanh² v    h' = tanh(u) √(c' + 0.5)
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Autonomous;

impl Cell for Autonomous {
    const NAME: &'static str = "autonomous";
    const STATES: &'static [&'static str] = &["h", "c"];
    const GATES: &'static [Gate] = &[Gate::recurrent("u"), Gate::recurrent("v")];
    const CONSTANT: &'static [usize] = &[1];
    type State<R: Real> = [R; 2];
    type Gates<R: Real> = [R; 2];

    #[inline(always)]
    fn forward<R: Real>(&self, [_, c]: [R; 2], [u, v]: [R; 2]) -> [R; 2] {
        let v = v.tanh();
        let c = c.stop_gradient() * R::lit(0.9) + v * v * R::lit(0.1);
        [u.tanh() * (c + R::lit(0.5)).sqrt(), c.stop_gradient()]
    }
}

/// A cell with 17 gates of all three kinds, more than some kernels support:
///
/// ```text
/// h' = (h + Σ_k tanh(g_k) / (k + 2)) / 4
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ManyGates;

impl Cell for ManyGates {
    const NAME: &'static str = "many_gates";
    const STATES: &'static [&'static str] = &["h"];
    const GATES: &'static [Gate] = &{
        let mut gates = [Gate::both("both"); 17];
        gates[0] = Gate::recurrent("first");
        gates[15] = Gate::external("last but one");
        gates[16] = Gate::external("last");
        gates
    };
    type State<R: Real> = [R; 1];
    type Gates<R: Real> = [R; 17];

    #[inline(always)]
    fn forward<R: Real>(&self, [h]: [R; 1], gates: [R; 17]) -> [R; 1] {
        let mut sum = h;
        for (k, g) in gates.into_iter().enumerate() {
            sum = sum + g.tanh() * R::lit(1.0 / (k as f64 + 2.0));
        }
        [sum * R::lit(0.25)]
    }
}
