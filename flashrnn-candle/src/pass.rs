//! A forward pass and its backward passes, as operations of candle's graph.
//!
//! An operation of candle's has one output, and the recurrence has two. The final state is the
//! output of the operation that depends on the inputs. h (or all states) is the output of a second
//! operation that depends on the final state. Its backward pass leaves the gradient of h here for
//! the backward pass of the first, which candle runs later, and returns zeros for the final state.
//! So no gradient as large as h is padded or summed.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::{self, ThreadId};

use candle_core::{Error, Result, Storage, Tensor};

use crate::call::{Activations, Call, InputGradients, OutputGradients};
use crate::graph::{attach, gradient, no_second_derivatives};
use crate::product::Product;
use crate::storage::{Number, check_unchanged, fingerprint, plain, zeros_like};

/// What a forward pass keeps for its backward passes.
pub(crate) struct Pass<T: Number, W: Number> {
    call: Call<T, W>,
    activations: Activations<T>,
    /// wx, if the backward pass reads it again and it is no input of an operation.
    wx: Option<Tensor>,
    /// The first output, not connected to the graph. Its storage may hold every state.
    output: OnceLock<Tensor>,
    /// The gradients of h in the backward passes that run now.
    d_heads: Mutex<Vec<HeadGradient>>,
}

/// The gradient of h, on its way from one operation to the other.
struct HeadGradient {
    /// Several threads may run backward passes at the same time.
    thread: ThreadId,
    d_head: Tensor,
    /// Alive while candle keeps the gradients of this backward pass. If that failed halfway, the
    /// next one must not find its gradient.
    pass: Weak<()>,
}

impl<T: Number, W: Number> Pass<T, W> {
    pub fn new(call: Call<T, W>, activations: Activations<T>, wx: Option<Tensor>) -> Self {
        Self { call, activations, wx, output: OnceLock::new(), d_heads: Mutex::default() }
    }

    /// Makes the tensor of the final state, which depends on wx and on the tensor with s0, r and b.
    pub fn recurrence(self: &Arc<Self>, inputs: [&Tensor; 2], last: Storage) -> Result<Tensor> {
        let shape = self.call.shapes().state();
        let pass = self.clone();
        let before = if self.call.recomputes() { fingerprint(inputs[0]) } else { None };
        attach("flashrnn", inputs, last, shape.as_slice(), move |[wx, rest], d_last| {
            let again = pass.call.recomputes().then_some(wx);
            if let Some(wx) = again {
                check_unchanged("wx", before, wx)?;
            }
            let d = pass.backward(again, rest, d_last)?;
            Ok([gradient_if_tracked(d.wx, wx)?, gradient_if_tracked(d.rest, rest)?])
        })
    }

    /// Makes the tensor of the final state, which depends on x, w and the tensor with s0, r and b.
    pub fn layer(
        self: &Arc<Self>,
        product: Product,
        inputs: [&Tensor; 3],
        last: Storage,
    ) -> Result<Tensor> {
        let shape = self.call.shapes().state();
        let pass = self.clone();
        attach("flashrnn layer", inputs, last, shape.as_slice(), move |[x, w, rest], d_last| {
            let d = pass.backward(pass.wx.as_ref(), rest, d_last)?;
            let d_wx = plain(d.wx, pass.call.shapes().wx().as_slice());
            let [d_x, d_w] = product.backward(x, w, &d_wx)?;
            Ok([d_x, d_w, gradient_if_tracked(d.rest, rest)?])
        })
    }

    /// Makes the tensor of h, or of all states, which depends on the final state `last`.
    pub fn head(self: &Arc<Self>, last: &Tensor, head: Storage) -> Result<Tensor> {
        let shape = self.call.head_shape();
        let pass = self.clone();
        let head = attach("flashrnn h", [last], head, shape, move |[last], d_head| {
            let alive = Arc::new(());
            pass.keep(d_head.contiguous()?, Arc::downgrade(&alive));
            // The graph of this gradient owns `alive`. candle sums gradients without detaching
            // them, so the sum keeps it until the backward pass of the first operation has run.
            let zeros = zeros_like(last)?;
            let marker = attach("flashrnn mark", [last], zeros, last.shape(), move |_, _| {
                let _alive = &alive;
                Err(no_second_derivatives())
            })?;
            Ok([Some(marker)])
        })?;
        self.output.get_or_init(|| head.detach());
        Ok(head)
    }

    /// Computes the gradients of the inputs from that of the final state, and from that of h if
    /// there is one. `wx` is present if the pass recomputes.
    fn backward(
        &self,
        wx: Option<&Tensor>,
        rest: &Tensor,
        d_last: &Tensor,
    ) -> Result<InputGradients> {
        let output = self.output.get().ok_or_else(|| Error::msg("flashrnn: no output"))?;
        let d_head = self.take();
        let d = OutputGradients { output, head: d_head.as_ref(), last: &d_last.contiguous()? };
        self.call.backward(&self.activations, wx, rest, &d)
    }

    fn keep(&self, d_head: Tensor, pass: Weak<()>) {
        let thread = thread::current().id();
        let mut d_heads = self.lock();
        d_heads.retain(|other| other.thread != thread && other.pass.strong_count() > 0);
        d_heads.push(HeadGradient { thread, d_head, pass });
    }

    /// Takes the gradient of h in the backward pass that this thread runs.
    fn take(&self) -> Option<Tensor> {
        let thread = thread::current().id();
        let mut d_heads = self.lock();
        let i = d_heads.iter().position(|other| other.thread == thread)?;
        let HeadGradient { d_head, pass, .. } = d_heads.swap_remove(i);
        (pass.strong_count() > 0).then_some(d_head)
    }

    /// Locks the gradients. A poisoned lock is safe to use, since every change is a single
    /// operation of the vector.
    fn lock(&self) -> MutexGuard<'_, Vec<HeadGradient>> {
        self.d_heads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the gradient of an input, if that depends on a variable.
fn gradient_if_tracked(values: Storage, input: &Tensor) -> Result<Option<Tensor>> {
    input.track_op().then(|| gradient(values, input)).transpose()
}
