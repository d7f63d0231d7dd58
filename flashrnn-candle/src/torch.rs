//! Weights from PyTorch's `nn.LSTM`, `nn.GRU` and `nn.RNN`.

use candle_core::{Error, Result, Tensor};
use candle_nn::VarBuilder;
use flashrnn::{Cell, Elman, Gru, Lstm};

/// The weights of a layer in flashrnn's order.
#[derive(Clone, Debug)]
pub struct Weights {
    /// `[Gx·N·D, I]`, the input product: reshape `x Wᵀ` to `[B, T, Gx, N, D]`.
    pub w: Tensor,
    /// `[Gr, N, D_out, D_in]`
    pub r: Tensor,
    /// `[G, N, D]`
    pub b: Tensor,
}

/// The tensors of one layer and direction of a PyTorch module. `H` is its `hidden_size`, `I` its input's width, `K`
/// is 4 for `nn.LSTM`, 3 for `nn.GRU`, 1 for `nn.RNN`.
#[derive(Clone, Debug)]
pub struct TorchTensors {
    /// `weight_ih_l0 [K·H, I]`
    pub weight_ih: Tensor,
    /// `weight_hh_l0 [K·H, H]`
    pub weight_hh: Tensor,
    /// `bias_ih_l0 [K·H]`, zeros if absent.
    pub bias_ih: Option<Tensor>,
    /// `bias_hh_l0 [K·H]`, zeros if absent.
    pub bias_hh: Option<Tensor>,
}

impl TorchTensors {
    /// Finds `weight_ih_SUFFIX` and its siblings in `vb`.
    pub(crate) fn find(
        rows: usize,
        input: usize,
        hidden: usize,
        suffix: &str,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let bias = |name: &str| {
            let name = format!("{name}_{suffix}");
            vb.contains_tensor(&name).then(|| vb.get(rows, &name)).transpose()
        };
        Ok(Self {
            weight_ih: vb.get((rows, input), &format!("weight_ih_{suffix}"))?,
            weight_hh: vb.get((rows, hidden), &format!("weight_hh_{suffix}"))?,
            bias_ih: bias("bias_ih")?,
            bias_hh: bias("bias_hh")?,
        })
    }

    /// `H`, after checking every shape against `K` = `gates`.
    fn hidden(&self, gates: usize) -> Result<usize> {
        let (rows, hidden) = self.weight_hh.dims2()?;
        let wrong = |name: &str, got: &Tensor, want: String| {
            Error::msg(format!("{name}: got shape {:?}, wanted {want}", got.dims()))
        };
        if hidden == 0 || rows != gates * hidden {
            return Err(wrong("weight_hh", &self.weight_hh, format!("[{gates}·H, H]")));
        }
        if !matches!(self.weight_ih.dims(), &[got, _] if got == rows) {
            return Err(wrong("weight_ih", &self.weight_ih, format!("[{rows}, I]")));
        }
        for (name, bias) in [("bias_ih", &self.bias_ih), ("bias_hh", &self.bias_hh)] {
            if let Some(bias) = bias
                && bias.dims() != [rows]
            {
                return Err(wrong(name, bias, format!("[{rows}]")));
            }
        }
        Ok(hidden)
    }

    /// `bias_ih` and `bias_hh` as `[K, 1, H]`.
    fn biases(&self, gates: usize, hidden: usize) -> Result<[Tensor; 2]> {
        let shaped = |bias: &Option<Tensor>| match bias {
            Some(bias) => bias.reshape((gates, 1, hidden)),
            None => Tensor::zeros((gates, 1, hidden), self.weight_hh.dtype(), self.weight_hh.device()),
        };
        Ok([shaped(&self.bias_ih)?, shaped(&self.bias_hh)?])
    }

    /// The weights of a cell whose gates are PyTorch's in PyTorch's order, and add both biases.
    fn in_order(&self, gates: usize) -> Result<Weights> {
        let hidden = self.hidden(gates)?;
        let [bias_ih, bias_hh] = self.biases(gates, hidden)?;
        Ok(Weights {
            w: self.weight_ih.clone(),
            r: self.weight_hh.reshape((gates, 1, hidden, hidden))?,
            b: (bias_ih + bias_hh)?,
        })
    }
}

/// A cell that PyTorch has too: its weights can be brought over, to one head of `D = H` units.
pub trait FromTorch: Cell {
    /// Brings PyTorch's tensors into flashrnn's order.
    ///
    /// # Errors
    /// Where shapes contradict each other.
    fn from_torch(tensors: &TorchTensors) -> Result<Weights>;
}

/// `nn.LSTM`: its gates i, f, g, o are i, f, z, o here; `b = bias_ih + bias_hh`.
impl FromTorch for Lstm {
    fn from_torch(tensors: &TorchTensors) -> Result<Weights> {
        tensors.in_order(4)
    }
}

/// `nn.RNN` with `nonlinearity='tanh'`; `b = bias_ih + bias_hh`.
impl FromTorch for Elman {
    fn from_torch(tensors: &TorchTensors) -> Result<Weights> {
        tensors.in_order(1)
    }
}

/// `nn.GRU`: its r, z, n stay in that order in W; in R they become n, r, z; the biases become b_hn, b_ir + b_hr,
/// b_iz + b_hz, b_in.
impl FromTorch for Gru {
    fn from_torch(tensors: &TorchTensors) -> Result<Weights> {
        let hidden = tensors.hidden(3)?;
        let r = tensors.weight_hh.reshape((3, 1, hidden, hidden))?; // r, z, n
        let [bias_ih, bias_hh] = tensors.biases(3, hidden)?;
        let both = (bias_ih.narrow(0, 0, 2)? + bias_hh.narrow(0, 0, 2)?)?; // r, z
        Ok(Weights {
            w: tensors.weight_ih.clone(),
            r: Tensor::cat(&[r.narrow(0, 2, 1)?, r.narrow(0, 0, 2)?], 0)?,
            b: Tensor::cat(&[bias_hh.narrow(0, 2, 1)?, both, bias_ih.narrow(0, 2, 1)?], 0)?,
        })
    }
}
