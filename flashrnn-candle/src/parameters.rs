//! The parameters of one layer and direction, in flashrnn's or PyTorch's order.

use candle_core::{Result, Tensor};
use candle_nn::{Init, VarBuilder};
use flashrnn::{Cell, CellSizes};

use crate::config::{LayerSize, RnnConfig};
use crate::join::concat;
use crate::lookup::{check_leftover, get, uniform};
use crate::storage::check;
use crate::torch::TorchWeights;

/// The weights of one layer and direction in flashrnn's order.
#[derive(Clone, Debug)]
pub struct Weights {
    /// `[Gx·N·D, I]`, the input weights. `wx` is `x Wᵀ` reshaped to `[B, T, Gx, N, D]`.
    pub w: Tensor,
    /// `[Gr, N, D_out, D_in]`, the recurrent weights.
    pub r: Tensor,
    /// `[G, N, D]`, the biases.
    pub b: Tensor,
}

#[derive(Clone, Debug)]
pub(crate) enum Parameters {
    /// In flashrnn's order.
    Own {
        /// `[Gx·N·D, I]`
        w: Tensor,
        /// `[Gr, N, D_out, D_in]`
        r: Tensor,
        /// One `[N, D]` per gate, or one `[G, N, D]`
        b: Vec<Tensor>,
    },
    /// In PyTorch's order.
    Torch(TorchWeights),
}

impl Parameters {
    /// Checks that `vb` has no parameters in flashrnn's order that `config` leaves out.
    pub fn check_leftover<C: Cell>(config: &RnnConfig, vb: &VarBuilder) -> Result<()> {
        let bias = C::GATES.first().map_or("b", |gate| gate.name());
        check_leftover(config, vb, "w", &format!("b_{bias}"))
    }

    /// Gets parameters in flashrnn's order from `vb`, whose names end in `_suffix`.
    pub fn own<C: Cell>(
        size: LayerSize,
        bias: bool,
        suffix: &str,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let LayerSize { input, heads, head_dim } = size;
        let named = |name: &str| format!("{name}_{suffix}");
        let w = get(vb, &[C::GX * heads * head_dim, input], &named("w"), uniform(input))?;
        let r = get(vb, &[C::GR, heads, head_dim, head_dim], &named("r"), uniform(head_dim))?;
        let b = if bias {
            let init = |gate: &str| Init::Const(if gate == "f" { 1.0 } else { 0.0 });
            let gates = C::GATES.iter().map(|gate| gate.name());
            let bias = |gate| get(vb, &[heads, head_dim], &named(&format!("b_{gate}")), init(gate));
            gates.map(bias).collect::<Result<_>>()?
        } else {
            vec![Tensor::zeros((C::G, heads, head_dim), vb.dtype(), vb.device())?]
        };
        Ok(Self::Own { w, r, b })
    }

    /// Takes existing weights, after checking their shapes.
    pub fn existing<C: Cell>(size: LayerSize, weights: &Weights) -> Result<Self> {
        let LayerSize { input, heads, head_dim } = size;
        let Weights { w, r, b } = weights;
        check("w", w, &[C::GX * heads * head_dim, input])?;
        check("r", r, &[C::GR, heads, head_dim, head_dim])?;
        check("b", b, &[C::G, heads, head_dim])?;
        Ok(Self::Own { w: w.clone(), r: r.clone(), b: vec![b.clone()] })
    }

    /// `[Gx·N·D, I]`
    pub fn w(&self) -> &Tensor {
        match self {
            Self::Own { w, .. } => w,
            Self::Torch(torch) => &torch.weight_ih,
        }
    }

    /// Returns r and b with their current values, b perhaps in several parts, with the right number
    /// of elements but any shape.
    pub fn recurrent(&self) -> Result<Vec<Tensor>> {
        match self {
            Self::Own { r, b, .. } => Ok([std::slice::from_ref(r), b].concat()),
            Self::Torch(torch) => Ok(vec![torch.r()?, torch.b()?]),
        }
    }

    /// Returns r and b with their current values, with the right number of elements but any shape.
    pub fn r_and_b(&self) -> Result<(Tensor, Tensor)> {
        match self {
            Self::Own { r, b, .. } => Ok((r.clone(), concat(&b.iter().collect::<Vec<_>>())?)),
            Self::Torch(torch) => Ok((torch.r()?, torch.b()?)),
        }
    }
}
