//! The operator on candle tensors: checks, packing, and the way back to named tensors.

use std::sync::OnceLock;

use candle_core::{DType, Device, Error, Result, Tensor};
use flashrnn::{Cell, Cpu, Layout, Options, Plan, Problem, Save, Shapes, bf16, f16};

use crate::Bridge;
use crate::op::{Number, Op};

/// A recurrence with its options, ready for tensors of any size.
///
/// The fields are the options of [`Problem`]; [`Rnn::new`] gives the defaults, so that
/// `Rnn { reverse: true, ..Rnn::new(Lstm) }` names just what differs.
#[derive(Clone, Debug)]
pub struct Rnn<C, B = Cpu> {
    /// The cell: one of [`flashrnn::cells`] or the user's own.
    pub cell: C,
    /// The backend, and with it its device or the threads it uses.
    pub backend: B,
    /// The order of the batch and time axes.
    pub layout: Layout,
    /// Time runs backwards, each row from its own end; outputs stay at their positions.
    pub reverse: bool,
    /// `h' ← clamp(h', -v, v)`, v > 0.
    pub forward_clip: Option<f64>,
    /// The gradient that reaches `h_{t-1}` through R is clamped to ±v, v > 0.
    pub recurrent_grad_clip: Option<f64>,
    /// No gradient reaches `h_{t-1}` through R.
    pub cut_recurrent_grad: bool,
    /// f32 products may round their factors to TF32 where a backend gains from it.
    pub tf32: bool,
    /// What is kept for the backward pass besides the states.
    pub save: Save,
    /// Fill [`Output::states`]. See the crate's documentation for what that costs.
    pub all_states: bool,
}

/// The inputs that may be absent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Optional<'a> {
    /// `[S, B, N, D]`: the initial state, zeros if absent. Any float type; used as f32, or f64 beside an f64 `wx`.
    pub s0: Option<&'a Tensor>,
    /// `[B]`, of an integer type: row b has `lengths[b]` steps, 0 to T. Later outputs are zero.
    pub lengths: Option<&'a Tensor>,
    /// `[B, T]` (or `[T, B]`), of an integer type: where not 0, the state is zeroed before that step, in processing
    /// order.
    pub resets: Option<&'a Tensor>,
}

/// The results of a call.
#[derive(Clone, Debug)]
pub struct Output {
    /// `[B, T, N, D]` (or time-major): h at every step, in the type of `wx`.
    pub h: Tensor,
    /// `[S, B, N, D]`: the state each row ends in, f32, or f64 beside f64.
    pub last: Tensor,
    /// `[S, B, T, N, D]` (or time-major): every state at every step, in the type of `wx`. There with
    /// [`Rnn::all_states`].
    pub states: Option<Tensor>,
}

impl<C: Cell> Rnn<C> {
    /// The recurrence of `cell`, batch-major, with every option off, on all threads of the CPU.
    pub fn new(cell: C) -> Self {
        Self::on(Cpu::new(), cell)
    }
}

impl<C: Cell, B: Bridge> Rnn<C, B> {
    /// The recurrence of `cell` on `backend`, batch-major, with every option off.
    pub fn on(backend: B, cell: C) -> Self {
        Self {
            cell,
            backend,
            layout: Layout::BatchMajor,
            reverse: false,
            forward_clip: None,
            recurrent_grad_clip: None,
            cut_recurrent_grad: false,
            tf32: false,
            save: Save::Gates,
            all_states: false,
        }
    }

    /// Runs the recurrence over `wx [B, T, Gx, N, D]` with `r [Gr, N, D_out, D_in]` and `b [G, N, D]`.
    ///
    /// Differentiable in `wx`, `r`, `b` and `s0`, from every tensor of the [`Output`]. Tensors that are not contiguous
    /// are copied.
    ///
    /// # Errors
    /// Where a tensor has the wrong shape or type or lies on another device than the CPU, a length is not within 0 to
    /// T, an option makes no sense, or memory runs out.
    pub fn forward(&self, wx: &Tensor, r: &Tensor, b: &Tensor, optional: &Optional) -> Result<Output> {
        let &Optional { s0, lengths, resets } = optional;
        let named = [("wx", Some(wx)), ("r", Some(r)), ("b", Some(b)), ("s0", s0)];
        let named = named.into_iter().chain([("lengths", lengths), ("resets", resets)]);
        for (name, tensor) in named.filter_map(|(name, tensor)| Some((name, tensor?))) {
            if !tensor.device().is_cpu() {
                let device = tensor.device().location();
                return Err(Error::msg(format!(
                    "{name} lies on {device:?}; flashrnn-candle takes tensors on the CPU"
                )));
            }
        }
        match (wx.dtype(), r.dtype()) {
            (DType::F32, DType::F32) => self.run::<f32, f32>(wx, r, b, optional),
            (DType::F64, DType::F64) => self.run::<f64, f64>(wx, r, b, optional),
            (DType::F16, DType::F16) => self.run::<f16, f16>(wx, r, b, optional),
            (DType::F16, DType::F32) => self.run::<f16, f32>(wx, r, b, optional),
            (DType::BF16, DType::BF16) => self.run::<bf16, bf16>(wx, r, b, optional),
            (DType::BF16, DType::F32) => self.run::<bf16, f32>(wx, r, b, optional),
            (DType::F32 | DType::F64 | DType::F16 | DType::BF16, got) => Err(Error::msg(format!(
                "r is {got:?}, wanted {:?} as wx, or F32 beside a 16-bit wx",
                wx.dtype()
            ))),
            (got, _) => Err(Error::msg(format!("wx is {got:?}, wanted F32, F64, F16 or BF16"))),
        }
    }

    fn run<T: Number, W: Number>(
        &self,
        wx: &Tensor,
        r: &Tensor,
        b: &Tensor,
        optional: &Optional,
    ) -> Result<Output> {
        let problem = self.problem(wx)?;
        let shapes = problem.shapes::<C>().map_err(Error::wrap)?;
        check("wx", wx, &shapes.wx())?;
        check("r", r, &shapes.r())?;
        check("b", b, &shapes.b())?;
        if b.dtype() != r.dtype() {
            return Err(Error::msg(format!("b is {:?}, wanted {:?} as r", b.dtype(), r.dtype())));
        }
        let wide = <T::Wide as candle_core::WithDType>::DTYPE;
        let s0 = match optional.s0 {
            Some(s0) if !s0.dtype().is_float() => {
                return Err(Error::msg(format!("s0 is {:?}, wanted a float type", s0.dtype())));
            }
            Some(s0) => {
                check("s0", s0, &shapes.state())?;
                s0.to_dtype(wide)?.contiguous()?
            }
            None => Tensor::zeros(shapes.state().as_slice(), wide, &Device::Cpu)?,
        };
        let wx = wx.contiguous()?;
        let weights = Tensor::cat(&[r.flatten_all()?, b.flatten_all()?], 0)?;
        let op = Op::<B, T, W> {
            backend: self.backend.clone(),
            plan: self.backend.plan(&self.cell, &problem).map_err(Error::wrap)?,
            lengths: optional.lengths.map(|lengths| read_lengths(lengths, &shapes)).transpose()?,
            resets: optional.resets.map(|resets| read_resets(resets, &shapes)).transpose()?,
            all_states: self.all_states,
            differentiable: wx.track_op() || weights.track_op() || s0.track_op(),
            kept: OnceLock::new(),
        };
        let shapes = op.plan.shapes().clone();
        let head_len = op.head_len();
        // packed: [S·B·T·N·D or B·T·N·D, then S·B·N·D]
        let packed = wx.apply_op3(&weights, &s0, op)?;
        let head = packed.narrow(0, 0, head_len)?.to_dtype(wx.dtype())?;
        let last = packed.narrow(0, head_len, packed.elem_count() - head_len)?;
        let last = last.reshape(shapes.state().as_slice())?;
        if self.all_states {
            let states = head.reshape(shapes.states().as_slice())?;
            Ok(Output { h: states.get(0)?, last, states: Some(states) })
        } else {
            Ok(Output { h: head.reshape(shapes.h().as_slice())?, last, states: None })
        }
    }

    /// The problem that `wx` poses.
    fn problem(&self, wx: &Tensor) -> Result<Problem> {
        let &[outer, inner, _, heads, head_dim] = wx.dims() else {
            let order = match self.layout {
                Layout::BatchMajor => "[B, T, Gx, N, D]",
                Layout::TimeMajor => "[T, B, Gx, N, D]",
            };
            return Err(Error::msg(format!("wx: got shape {:?}, wanted {order}", wx.dims())));
        };
        let (batch, time) = match self.layout {
            Layout::BatchMajor => (outer, inner),
            Layout::TimeMajor => (inner, outer),
        };
        Ok(Problem::new(batch, time, heads, head_dim).with(Options {
            layout: self.layout,
            reverse: self.reverse,
            forward_clip: self.forward_clip,
            recurrent_grad_clip: self.recurrent_grad_clip,
            cut_recurrent_grad: self.cut_recurrent_grad,
            tf32: self.tf32,
            save: self.save,
            ..Options::default()
        }))
    }
}

fn check(name: &'static str, tensor: &Tensor, want: &[usize]) -> Result<()> {
    if tensor.dims() == want {
        return Ok(());
    }
    Err(Error::wrap(flashrnn::Error::Shape {
        tensor: name,
        got: tensor.dims().to_vec(),
        want: want.to_vec(),
    }))
}

/// The values of an integer tensor of shape `want`.
fn read_integers(name: &'static str, tensor: &Tensor, want: &[usize]) -> Result<Vec<i64>> {
    check(name, tensor, want)?;
    if !tensor.dtype().is_int() {
        return Err(Error::msg(format!("{name} is {:?}, wanted an integer type", tensor.dtype())));
    }
    tensor.to_dtype(DType::I64)?.flatten_all()?.to_vec1()
}

fn read_lengths(tensor: &Tensor, shapes: &Shapes) -> Result<Vec<i32>> {
    let lengths = read_integers("lengths", tensor, &[shapes.batch])?;
    // time is at most i32::MAX, so a length that fits 0..=time fits i32.
    let fits = |&n: &i64| (0..=shapes.time as i64).contains(&n);
    match lengths.iter().position(|n| !fits(n)) {
        None => Ok(lengths.iter().map(|&n| n as i32).collect()),
        Some(index) => Err(Error::wrap(flashrnn::Error::Value {
            tensor: "lengths",
            index,
            got: lengths[index].to_string(),
            want: format!("0 to {}", shapes.time),
        })),
    }
}

fn read_resets(tensor: &Tensor, shapes: &Shapes) -> Result<Vec<u8>> {
    Ok(read_integers("resets", tensor, &shapes.resets())?.iter().map(|&flag| u8::from(flag != 0)).collect())
}
