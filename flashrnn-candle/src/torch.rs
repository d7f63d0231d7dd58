//! Weights in the order of PyTorch's `nn.LSTM`, `nn.GRU` and `nn.RNN`.

use std::ops::Range;

use candle_core::{Error, Result, Tensor};
use candle_nn::{Init, VarBuilder};
use flashrnn::{Cell, CellSizes, Elman, Gru, Lstm};

use crate::join::{Part, join};

/// A cell that PyTorch has too: its weights can be brought over, to one head of `D = hidden_size`
/// units.
///
/// PyTorch stacks the weights of K gates, each `hidden_size` rows, in `weight_ih [K·H, I]`,
/// `weight_hh [K·H, H]` and two biases `[K·H]`; K is 4 for `nn.LSTM`, 3 for `nn.GRU`, 1 for
/// `nn.RNN`.
pub trait FromTorch: Cell {
    /// For each gate in [`Cell::GATES`], PyTorch's gate whose weights it takes.
    const TORCH_GATES: &'static [TorchGate];
}

/// `nn.LSTM`: its gates i, f, g, o are i, f, z, o here; `b = bias_ih + bias_hh`.
impl FromTorch for Lstm {
    const TORCH_GATES: &'static [TorchGate] =
        &[TorchGate::both(0), TorchGate::both(1), TorchGate::both(2), TorchGate::both(3)];
}

/// `nn.RNN` with `nonlinearity='tanh'`; `b = bias_ih + bias_hh`.
impl FromTorch for Elman {
    const TORCH_GATES: &'static [TorchGate] = &[TorchGate::both(0)];
}

/// `nn.GRU`: its gates are r, z, n. The biases of n stay apart: b_hn is n_h's, inside the reset
/// gate, b_in n_x's.
impl FromTorch for Gru {
    const TORCH_GATES: &'static [TorchGate] =
        &[TorchGate::recurrent(2), TorchGate::both(0), TorchGate::both(1), TorchGate::external(2)];
}

/// Which of PyTorch's gates a gate takes its weights from, and which of the two halves.
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

/// K of a cell, after checks of [`FromTorch::TORCH_GATES`] when the program is compiled.
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
                "the gates with weight_hh are those with recurrent input"
            );
            assert!(
                ih.is_some() == (k >= C::G - C::GX),
                "the gates with weight_ih are those with external input"
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

/// The parameters of one layer and direction of a PyTorch module, as they are there.
#[derive(Clone, Debug)]
pub(crate) struct TorchWeights {
    /// `[K·H, I]`
    pub weight_ih: Tensor,
    /// `[K·H, H]`
    weight_hh: Tensor,
    /// `bias_ih` and `bias_hh`, `[K·H]` each; none with PyTorch's `bias=False`.
    biases: Option<[Tensor; 2]>,
    gates: &'static [TorchGate],
}

impl TorchWeights {
    /// Finds the parameters in `vb`, or makes them as PyTorch does where `vb` makes variables.
    pub fn find<C: FromTorch>(
        input: usize,
        hidden: usize,
        suffix: &str,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let rows = Checked::<C>::K * hidden;
        let bound = 1.0 / (hidden as f64).sqrt();
        let init = Init::Uniform { lo: -bound, up: bound };
        let named = |name: &str| format!("{name}_{suffix}");
        // A builder that does not have the weights and gives them all the same makes them, and then
        // the biases too.
        let makes = !vb.contains_tensor(&named("weight_ih"));
        let weight_ih = vb.get_with_hints((rows, input), &named("weight_ih"), init)?;
        let weight_hh = vb.get_with_hints((rows, hidden), &named("weight_hh"), init)?;
        let names = ["bias_ih", "bias_hh"].map(named);
        let [ih, hh] = names.each_ref().map(|name| makes || vb.contains_tensor(name));
        let bias = |name: &str| vb.get_with_hints(rows, name, init);
        let biases = match (ih, hh) {
            (true, true) => Some([bias(&names[0])?, bias(&names[1])?]),
            (false, false) => None,
            _ => {
                let [missing, there] =
                    if ih { [&names[1], &names[0]] } else { [&names[0], &names[1]] };
                let prefix = vb.prefix();
                let prefix = if prefix.is_empty() { prefix } else { format!("{prefix}.") };
                return Err(Error::msg(format!(
                    "{prefix}{missing} is missing, though {prefix}{there} is there; a PyTorch module has \
                     both biases or none"
                )));
            }
        };
        Ok(Self { weight_ih, weight_hh, biases, gates: C::TORCH_GATES })
    }

    /// `H`
    fn hidden(&self) -> Result<usize> {
        self.weight_hh.dim(1)
    }

    /// Returns R, of the elements of `[Gr, 1, H, H]`: `weight_hh` itself where its gates are in our
    /// order.
    pub fn r(&self) -> Result<Tensor> {
        let indices: Vec<usize> = self.gates.iter().filter_map(|gate| gate.hh).collect();
        if indices.iter().copied().eq(0..self.weight_hh.dim(0)? / self.hidden()?) {
            return Ok(self.weight_hh.clone());
        }
        let size = self.hidden()? * self.hidden()?;
        let parts = indices.into_iter().map(|index| Part::First(chunk(index, size))).collect();
        join(&self.weight_hh, &self.weight_hh, parts)
    }

    /// Returns b, of the elements of `[G, 1, H]`.
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

/// The elements of gate `index`, where each has `size`.
fn chunk(index: usize, size: usize) -> Range<usize> {
    index * size..(index + 1) * size
}
