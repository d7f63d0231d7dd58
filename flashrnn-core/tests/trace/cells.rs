//! Cells for the tests of tracing, besides the built-in ones.

use flashrnn_core::{Cell, Gate, Real};

/// The cell of `examples/custom_cell.rs`.
#[derive(Clone)]
pub struct MinimalGated;

impl Cell for MinimalGated {
    const NAME: &'static str = "minimal_gated";
    const STATES: &'static [&'static str] = &["h"];
    const GATES: &'static [Gate] =
        &[Gate::recurrent("n_h"), Gate::both("f"), Gate::external("n_x")];
    type State<R: Real> = [R; 1];
    type Gates<R: Real> = [R; 3];

    fn forward<R: Real>(&self, [h]: [R; 1], [n_h, g_f, n_x]: [R; 3]) -> [R; 1] {
        let f = g_f.sigmoid();
        let n = (n_x + f * n_h).tanh();
        [(R::lit(1.0) - f) * h + f * n]
    }
}

/// A leaky integrator, `h' = h + a (tanh g - h)`: a cell with a parameter.
#[derive(Clone)]
pub struct Leaky {
    /// The rate at which h follows the gate.
    pub a: f64,
}

impl Cell for Leaky {
    const NAME: &'static str = "leaky";
    const STATES: &'static [&'static str] = &["h"];
    const GATES: &'static [Gate] = &[Gate::both("g")];
    type State<R: Real> = [R; 1];
    type Gates<R: Real> = [R; 1];

    fn forward<R: Real>(&self, [h]: [R; 1], [g]: [R; 1]) -> [R; 1] {
        [h + R::lit(self.a) * (g.tanh() - h)]
    }
}

/// A cell with every operation of [`Real`], a constant state whose gradient would not be 0, and
/// names that are identifiers in no language.
#[derive(Clone)]
pub struct Everything;

impl Cell for Everything {
    const NAME: &'static str = "every\nthing */ \\";
    const STATES: &'static [&'static str] = &["h", "class", "α β"];
    const GATES: &'static [Gate] =
        &[Gate::recurrent("h"), Gate::recurrent("x-y"), Gate::external("x y"), Gate::external("")];
    const WIDE: &'static [usize] = &[1, 2];
    const CONSTANT: &'static [usize] = &[2];
    type State<R: Real> = [R; 3];
    type Gates<R: Real> = [R; 4];

    fn forward<R: Real>(&self, [h, c, m]: [R; 3], [w, x, y, z]: [R; 4]) -> [R; 3] {
        let one = R::lit(1.0);
        let (sigmoid_y, slope_y) = y.sigmoid_and_slope();
        let (tanh_z, slope_z) = z.tanh_and_slope();
        let log = (x.abs() + R::lit(0.3)).ln();
        let bounded = (-(w * w)).exp().clamp_min(R::lit(0.01)).clamp_max(h * h + c.clamp_min(h));
        let q = R::select(w.gt(x), log / (R::lit(1.5) + bounded * bounded), (c * c + one).sqrt());
        let guarded = q.clamp_max(R::lit(1e3)).with_gradient_of(q);
        let c = guarded * sigmoid_y.clamp_min(slope_y) + slope_y * x.softplus_neg_abs()
            - w.log_sigmoid();
        [tanh_z * c - slope_z, c - m, m * R::lit(0.5) + c.abs()]
    }
}

/// A cell that jumps between two branches of equal slope: `h' = g` where `g > h`, else `g + 1`.
#[derive(Clone)]
pub struct Stairs;

impl Cell for Stairs {
    const NAME: &'static str = "stairs";
    const STATES: &'static [&'static str] = &["h"];
    const GATES: &'static [Gate] = &[Gate::both("g")];
    type State<R: Real> = [R; 1];
    type Gates<R: Real> = [R; 1];

    fn forward<R: Real>(&self, [h]: [R; 1], [g]: [R; 1]) -> [R; 1] {
        [R::select(g.gt(h), g, g + R::lit(1.0))]
    }
}

/// A cell whose overridden `backward` is longer than what reverse mode derives.
#[derive(Clone)]
pub struct Wordy;

impl Cell for Wordy {
    const NAME: &'static str = "wordy";
    const STATES: &'static [&'static str] = &["h"];
    const GATES: &'static [Gate] = &[Gate::both("g")];
    type State<R: Real> = [R; 1];
    type Gates<R: Real> = [R; 1];

    fn forward<R: Real>(&self, _: [R; 1], [g]: [R; 1]) -> [R; 1] {
        [g.tanh()]
    }

    fn backward<R: Real>(&self, _: [R; 1], [g]: [R; 1], [d_h]: [R; 1]) -> ([R; 1], [R; 1]) {
        let h = g.tanh();
        ([R::lit(0.0)], [d_h * (R::lit(1.0) - h * h)])
    }
}

/// Wraps a cell without its overridden `backward`.
#[derive(Clone)]
pub struct Derived<C>(pub C);

impl<C: Cell> Cell for Derived<C> {
    const NAME: &'static str = C::NAME;
    const STATES: &'static [&'static str] = C::STATES;
    const GATES: &'static [Gate] = C::GATES;
    const WIDE: &'static [usize] = C::WIDE;
    const WIDE_GATES: &'static [usize] = C::WIDE_GATES;
    const CONSTANT: &'static [usize] = C::CONSTANT;
    type State<R: Real> = C::State<R>;
    type Gates<R: Real> = C::Gates<R>;

    fn forward<R: Real>(&self, state: C::State<R>, gates: C::Gates<R>) -> C::State<R> {
        self.0.forward(state, gates)
    }
}
