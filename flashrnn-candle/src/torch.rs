//! Weights in the layout of PyTorch's `nn.LSTM`, `nn.GRU` and `nn.RNN`.

use std::ops::Range;

use candle_core::{Error, Result, Tensor};
use candle_nn::VarBuilder;
use flashrnn::{Cell, CellSizes, Elman, Gru, Lstm};

use crate::RnnConfig;
use crate::config::LayerSize;
use crate::join::{Part, join};
use crate::lookup::{check_absent, check_leftover, get, reason, uniform};

/// A cell that PyTorch has as well, so that its weights can be loaded into one head of
/// `D = hidden_size` units.
///
/// PyTorch stacks the weights of K gates, with H = `hidden_size` rows each, in
/// `weight_ih [K·H, I]`, `weight_hh [K·H, H]` and two biases `[K·H]`. K is 4 for `nn.LSTM`, 3 for
/// `nn.GRU` and 1 for `nn.RNN`.
pub trait FromTorch: Cell + Default {
    /// For each gate in [`Cell::GATES`], the PyTorch gate it takes its weights from.
    const TORCH_GATES: &'static [TorchGate];
}

/// `nn.LSTM`, whose gates i, f, g, o are called i, f, z, o here; `b = bias_ih + bias_hh`.
impl FromTorch for Lstm {
    const TORCH_GATES: &'static [TorchGate] =
        &[TorchGate::both(0), TorchGate::both(1), TorchGate::both(2), TorchGate::both(3)];
}

/// `nn.RNN` with `nonlinearity='tanh'`; `b = bias_ih + bias_hh`.
impl FromTorch for Elman {
    const TORCH_GATES: &'static [TorchGate] = &[TorchGate::both(0)];
}

/// `nn.GRU`, whose gates are r, z, n. The two biases of n remain separate: b_hn is the bias of n_h,
/// inside the reset gate, and b_in that of n_x.
impl FromTorch for Gru {
    const TORCH_GATES: &'static [TorchGate] =
        &[TorchGate::recurrent(2), TorchGate::both(0), TorchGate::both(1), TorchGate::external(2)];
}

/// The PyTorch gate that a gate takes its weights from, and which of the two matrices it uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TorchGate {
    ih: Option<usize>,
    hh: Option<usize>,
}

impl TorchGate {
    /// Takes `weight_hh` and `bias_hh` of PyTorch's gate `index`.
    #[must_use]
    pub const fn recurrent(index: usize) -> Self {
        Self { ih: None, hh: Some(index) }
    }

    /// Takes `weight_ih` and `weight_hh`, and the sum of both biases.
    #[must_use]
    pub const fn both(index: usize) -> Self {
        Self { ih: Some(index), hh: Some(index) }
    }

    /// Takes `weight_ih` and `bias_ih`.
    #[must_use]
    pub const fn external(index: usize) -> Self {
        Self { ih: Some(index), hh: None }
    }
}

/// Checks that PyTorch's modules can be configured like `config`, and that `vb` has no parameters of
/// one that `config` leaves out.
pub(crate) fn check_config(config: &RnnConfig, vb: &VarBuilder) -> Result<()> {
    if config.heads != 1 {
        let heads = config.heads;
        return Err(Error::msg(format!("heads is {heads}, wanted 1; PyTorch's modules have one")));
    }
    check_absent(vb, "weight_hr_l0", "projections (proj_size) are not supported")?;
    check_leftover(config, vb, "weight_ih", "bias_ih")
}

/// Lists the parameters of a PyTorch module that `vb` has, for error messages.
fn found(vb: &VarBuilder) -> String {
    let mut names = Vec::new();
    for layer in 0..100 {
        let before = names.len();
        for direction in ["", "_reverse"] {
            let kinds = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"];
            let named = kinds.map(|kind| format!("{kind}_l{layer}{direction}"));
            names.extend(named.into_iter().filter(|name| vb.contains_tensor(name)));
        }
        if names.len() == before {
            break;
        }
    }
    if names.is_empty() { "none of a PyTorch module".to_owned() } else { names.join(", ") }
}

/// Holds K of a cell, and checks [`FromTorch::TORCH_GATES`] at compile time.
struct Checked<C>(std::marker::PhantomData<C>);

impl<C: FromTorch> Checked<C> {
    const K: usize = {
        let gates = C::TORCH_GATES;
        assert!(gates.len() == C::G, "FromTorch::TORCH_GATES has an entry for every gate");
        let mut k = 0;
        while k < gates.len() {
            let TorchGate { ih, hh } = gates[k];
            assert!(
                hh.is_some() == (k < C::GR),
                "exactly the gates with recurrent input take weight_hh"
            );
            assert!(
                ih.is_some() == (k >= C::G - C::GX),
                "exactly the gates with external input take weight_ih"
            );
            if let Some(index) = hh {
                assert!(index < C::GX, "FromTorch::TORCH_GATES names one of PyTorch's K gates");
            }
            if let Some(index) = ih {
                assert!(
                    index == k + C::GX - C::G,
                    "the gates with external input are in PyTorch's order"
                );
            }
            k += 1;
        }
        C::GX
    };
}

/// The parameters of one layer and direction of a PyTorch module, in PyTorch's layout.
#[derive(Clone, Debug)]
pub(crate) struct TorchWeights {
    /// `[K·H, I]`
    pub weight_ih: Tensor,
    /// `[K·H, H]`
    weight_hh: Tensor,
    /// `bias_ih` and `bias_hh`, `[K·H]` each; absent with PyTorch's `bias=False`.
    biases: Option<[Tensor; 2]>,
    gates: &'static [TorchGate],
}

impl TorchWeights {
    /// Gets the parameters from `vb`, which initialises them like PyTorch if it creates variables.
    pub fn find<C: FromTorch>(
        size: LayerSize,
        bias: bool,
        suffix: &str,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let LayerSize { input, head_dim: hidden, .. } = size;
        let rows = Checked::<C>::K * hidden;
        let get = |name: &str, shape: &[usize]| {
            get(vb, shape, &format!("{name}_{suffix}"), uniform(hidden))
                .map_err(|error| Error::msg(format!("{}; found {}", reason(error), found(vb))))
        };
        let weight_ih = get("weight_ih", &[rows, input])?;
        let weight_hh = get("weight_hh", &[rows, hidden])?;
        let biases =
            if bias { Some([get("bias_ih", &[rows])?, get("bias_hh", &[rows])?]) } else { None };
        Ok(Self { weight_ih, weight_hh, biases, gates: C::TORCH_GATES })
    }

    /// Returns `H`.
    fn hidden(&self) -> Result<usize> {
        self.weight_hh.dim(1)
    }

    /// Returns R with the elements of `[Gr, 1, H, H]`, which is `weight_hh` itself if its gates are
    /// in flashrnn's order.
    pub fn r(&self) -> Result<Tensor> {
        let indices: Vec<usize> = self.gates.iter().filter_map(|gate| gate.hh).collect();
        if indices.iter().copied().eq(0..self.weight_hh.dim(0)? / self.hidden()?) {
            return Ok(self.weight_hh.clone());
        }
        let size = self.hidden()? * self.hidden()?;
        let parts = indices.into_iter().map(|index| Part::First(chunk(index, size))).collect();
        join(&self.weight_hh, &self.weight_hh, parts)
    }

    /// Returns b with the elements of `[G, 1, H]`.
    pub fn b(&self) -> Result<Tensor> {
        let hidden = self.hidden()?;
        let Some([ih, hh]) = &self.biases else {
            let weights = &self.weight_hh;
            return Tensor::zeros(self.gates.len() * hidden, weights.dtype(), weights.device());
        };
        let part = |gate: &TorchGate| match (gate.ih, gate.hh) {
            (Some(i), Some(h)) => Some(Part::Sum(chunk(i, hidden), chunk(h, hidden))),
            (Some(i), None) => Some(Part::First(chunk(i, hidden))),
            (None, Some(h)) => Some(Part::Second(chunk(h, hidden))),
            (None, None) => None,
        };
        join(ih, hh, self.gates.iter().filter_map(part).collect())
    }
}

/// Returns the range of gate `index`, where each gate has `size` elements.
fn chunk(index: usize, size: usize) -> Range<usize> {
    index * size..(index + 1) * size
}
