import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

import reference
from flashrnn_rs import rnn
from flashrnn_rs._plans import Options

CELLS = list(reference.CELLS)
OPCHECKS = ["test_schema", "test_autograd_registration", "test_faketensor"]
OPCHECKS.append("test_aot_dispatch_dynamic")
LENGTHS = torch.tensor([3, 0, 2])
RESETS = torch.zeros(3, 3, dtype=torch.bool)
RESETS[0, 1] = RESETS[2, 0] = RESETS[1, 2] = True
OPTIONS = [
    {},
    {"lengths": LENGTHS},
    {"resets": RESETS},
    {"lengths": LENGTHS, "resets": RESETS, "reverse": True, "save": "recompute"},
    {"lengths": LENGTHS, "resets": RESETS.T, "time_major": True},
]


def tensors(cell, dtype=torch.float64, **sizes):
    """Returns random `wx`, `r`, `b` and `s0` that require gradients."""
    arrays = reference.inputs(cell, **{"time": 3, "dim": 3, **sizes})
    return [torch.tensor(array, dtype=dtype, requires_grad=True) for array in arrays]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_gradcheck(cell, options):
    wx, r, b, s0 = tensors(cell)
    if cell == "slstm":  # its stabiliser m is held constant
        m, s0 = s0[3:].detach(), s0[:3].detach().requires_grad_()

    def call(wx, r, b, s0):
        start = torch.cat([s0, m]) if cell == "slstm" else s0
        h, last = rnn(wx, r, b, start, cell, **options)
        return h, last[: 1 if cell == "slstm" else None]

    assert torch.autograd.gradcheck(call, (wx, r, b, s0))
    assert torch.autograd.gradcheck(
        lambda *given: rnn(*given, None, cell, **options)[0], (wx, r, b)
    )


@pytest.mark.parametrize("cell", CELLS)
def test_the_forward_pass_agrees_with_the_loop(cell):
    wx, r, b, s0 = tensors(cell, time=9)
    states, last = reference.run(*[t.detach().numpy() for t in (wx, r, b, s0)], cell)
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            got = rnn(wx, r, b, s0, cell)
        np.testing.assert_allclose(got[0].detach(), states[0], atol=1e-13)
        np.testing.assert_allclose(got[1].detach(), last, atol=1e-13)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_opcheck(cell, options):
    wx, r, b, s0 = (t.detach() for t in tensors(cell, torch.float32))
    options = dict(options)
    lengths, resets = options.pop("lengths", None), options.pop("resets", None)
    lengths = None if lengths is None else lengths.int()
    options = Options(cell=cell, **options)
    ops, inputs = torch.ops.flashrnn_rs, (wx, r, b, s0, lengths, resets)
    torch.library.opcheck(ops.infer.default, (*inputs, True, *options))
    torch.library.opcheck(ops.infer.default, (*inputs, False, *options))
    # Of the saved gates, those beyond a row's length are neither written nor read.
    utils = ["test_schema", "test_faketensor"] if lengths is not None else OPCHECKS
    torch.library.opcheck(ops.forward.default, (*inputs, *options), test_utils=utils)
    states, last, gates, wide = ops.forward(*inputs, *options)
    for wanted in ([True, True, True], [False, True, False]):
        given = (r, b, states, gates, wide, wx, s0, lengths, resets, states[0], last, wanted)
        torch.library.opcheck(ops.backward.default, (*given, *options))


def loss_and_gradients(call, given):
    h, last = call(*given)
    loss = h.square().sum() + last[0].sin().sum()
    return [h, last, *torch.autograd.grad(loss, given)]


def assert_same_bits(got, want):
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_compiled_equals_eager(cell, options, dynamic):
    torch.compiler.reset()
    call = lambda wx, r, b, s0: rnn(wx, r, b, s0, cell, **options)  # noqa: E731
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    given = tensors(cell, torch.float32)
    assert_same_bits(loss_and_gradients(compiled, given), loss_and_gradients(call, given))
    with torch.no_grad():
        assert_same_bits(compiled(*given), call(*given))


def test_a_compiled_function_serves_other_sizes():
    torch.compiler.reset()
    compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch, time in [(2, 3), (4, 7), (5, 2)]:
        given = tensors("lstm", torch.float32, batch=batch, time=time)
        assert_same_bits(loss_and_gradients(compiled, given), loss_and_gradients(rnn, given))


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        _, self.r, self.b, _ = (torch.nn.Parameter(t) for t in tensors("lstm", torch.float32))

    def forward(self, wx):
        return rnn(wx, self.r, self.b)


def test_export():
    layer, wx = Layer(), tensors("lstm", torch.float32)[0].detach()
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    exported = torch.export.export(layer, (wx,), dynamic_shapes=({0: batch, 1: time},))
    wx = tensors("lstm", torch.float32, batch=5, time=8)[0].detach()
    assert_same_bits(exported.module()(wx), layer(wx))


@pytest.mark.parametrize(
    ("dtype", "weight_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_dtypes(dtype, weight_dtype):
    wx, r, b, s0 = tensors("slstm", time=6)
    want = loss_and_gradients(lambda *given: rnn(*given, "slstm"), [wx, r, b, s0])
    given = [t.detach().to(dtype) for t in (wx, r, b, s0)]
    given[1:3] = [t.detach().to(weight_dtype) for t in (r, b)]
    given = [t.requires_grad_() for t in given]
    got = loss_and_gradients(lambda *given: rnn(*given, "slstm"), given)
    dtypes = [dtype, torch.float32, dtype, weight_dtype, weight_dtype, dtype]
    assert [t.dtype for t in got] == dtypes
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    for one, other in zip(got, want, strict=True):
        error = (one.double() - other).abs().max() / other.abs().max()
        assert error < tolerance


def test_autocast_casts_the_input_and_keeps_master_weights():
    given = tensors("lstm", torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h, last = rnn(*given)
    assert (h.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    want, _ = rnn(given[0].bfloat16(), *given[1:])
    assert torch.equal(h, want)
    assert [d.dtype for d in torch.autograd.grad(h.float().sum(), given)] == [torch.float32] * 4


def test_only_wanted_gradients_are_computed():
    wx, r, b, s0 = tensors("gru")
    full = torch.autograd.grad(rnn(wx, r, b, s0, "gru")[0].sum(), [wx, r, b, s0])
    for k in range(4):
        given = [t.detach() for t in (wx, r, b, s0)]
        given[k].requires_grad_()
        (one,) = torch.autograd.grad(rnn(*given, "gru")[0].sum(), given[k])
        assert torch.equal(one, full[k])


def test_a_sum_of_last_alone_has_gradients():
    given = tensors("lstm")
    loop = torch.autograd.grad(rnn(*given)[0][:, -1].sum(), given)
    last = torch.autograd.grad(rnn(*given)[1][0].sum(), given)
    for one, other in zip(loop, last, strict=True):
        torch.testing.assert_close(one, other)


def test_a_gradient_of_a_gradient_is_refused_in_words():
    wx, r, b, _ = tensors("lstm")
    (d_r,) = torch.autograd.grad(rnn(wx, r, b)[0].square().sum(), r, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        d_r.sum().backward()


def test_changing_what_the_backward_pass_reads_is_an_error():
    wx, r, b, _ = tensors("lstm")
    h, _ = rnn(wx, r, b)
    with torch.no_grad():
        r.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        h.sum().backward()


def test_changing_the_output_is_an_error():
    wx, r, b, _ = tensors("lstm")
    h, _ = rnn(wx, r, b)
    with pytest.raises(RuntimeError, match=r"[Ii]n-?place"):
        h.mul_(2).sum().backward()


@pytest.mark.parametrize(("batch", "time"), [(0, 3), (3, 0), (0, 0)])
def test_empty_tensors_have_empty_results(batch, time):
    wx = torch.zeros(batch, time, 4, 2, 3, requires_grad=True)
    _, r, b, _ = tensors("lstm", torch.float32)
    h, last = rnn(wx, r, b)
    assert h.shape == (batch, time, 2, 3)
    assert last.shape == (2, batch, 2, 3)
    (h.sum() + last.sum()).backward()
    assert not r.grad.any()


def test_meta_tensors_have_shapes():
    given = [t.detach().to("meta") for t in tensors("slstm", torch.bfloat16)]
    h, last = rnn(*given, "slstm")
    assert (h.shape, last.shape) == ((3, 3, 2, 3), (4, 3, 2, 3))
    assert (h.device.type, last.dtype) == ("meta", torch.float32)


def test_strided_inputs_and_expanded_gradients():
    wx, r, b, s0 = tensors("lstm", torch.float32)
    strided = [t.detach().transpose(-1, -2).contiguous().transpose(-1, -2) for t in (wx, r, b, s0)]
    strided = [t.requires_grad_() for t in strided]
    assert not any(t.is_contiguous() for t in strided)
    want = loss_and_gradients(rnn, [wx, r, b, s0])
    assert_same_bits(loss_and_gradients(rnn, strided), want)


def test_buffers_that_are_not_aligned():
    given = [t.detach() for t in tensors("lstm", torch.float32)]
    buffers = [bytearray(b"x" + t.numpy().tobytes()) for t in given]
    shifted = [
        torch.frombuffer(buffer, dtype=torch.float32, offset=1).view_as(t)
        for buffer, t in zip(buffers, given, strict=True)
    ]
    assert all(t.data_ptr() % 4 for t in shifted)
    assert_same_bits(rnn(*shifted), rnn(*given))


def test_checkpointing():
    given = tensors("lstm", torch.float32)
    again = lambda *given: checkpoint(rnn, *given, use_reentrant=False)  # noqa: E731
    assert_same_bits(loss_and_gradients(again, given), loss_and_gradients(rnn, given))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"wx": torch.zeros(3, 3, 3, 2, 3)}, ValueError, r"wx: got shape \[3, 3, 3, 2, 3\]"),
        ({"wx": torch.zeros(3, 3, 4, 2, 3).int()}, ValueError, "wx: got torch.int32"),
        ({"wx": torch.zeros(3, 3, 4, 2, 3).cfloat()}, ValueError, "wx: got torch.complex64"),
        ({"wx": torch.zeros(3, 3, 4, 2, 3).to_sparse()}, ValueError, "wx: got torch.sparse_coo"),
        ({"lengths": [1, 2, 3]}, TypeError, "lengths: got a list, wanted a tensor"),
        ({"r": torch.zeros(4, 2, 3, 2)}, ValueError, r"r: got shape .* wanted \[4, 2, 3, 3\]"),
        ({"r": torch.zeros(4, 2, 3, 3).to_sparse()}, ValueError, "r: got torch.sparse_coo"),
        ({"r": torch.zeros(4, 2, 3, 3).half()}, ValueError, "b: got torch.float32"),
        ({"b": torch.zeros(4, 2, 3, device="meta")}, ValueError, "b: got a tensor on meta"),
        ({"s0": torch.zeros(2, 3, 2, 2)}, ValueError, "s0: got shape"),
        ({"lengths": torch.tensor([1, 4, 3])}, ValueError, r"lengths\[1\] is 4, wanted 0 to 3"),
        ({"lengths": torch.tensor([1, 2**32, 3])}, ValueError, r"lengths\[1\] is 2147483647"),
        ({"lengths": torch.tensor([1.0, 2, 3])}, ValueError, "lengths: got torch.float32"),
        ({"resets": torch.zeros(3, 2)}, ValueError, "resets: got shape"),
        ({"cell": "lstn"}, ValueError, "cell: got lstn"),
        ({"save": "all"}, ValueError, "save: got all, wanted gates or recompute"),
    ],
)
def test_bad_input_is_refused_in_words(change, kind, message):
    given = dict(zip(("wx", "r", "b", "s0"), tensors("lstm", torch.float32), strict=True))
    with pytest.raises(kind, match=message):
        rnn(**{**given, "cell": "lstm", **change})


@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning")
def test_quantized_tensors_are_refused():
    wx = torch.quantize_per_tensor(torch.zeros(3, 3, 4, 2, 3), 0.1, 0, torch.qint8)
    with pytest.raises(ValueError, match=r"wx: got torch\.qint8"):
        rnn(wx, *tensors("lstm", torch.float32)[1:3])


def test_operators_refuse_tensors_of_a_smaller_dtype():
    wx, r, b, s0 = (t.detach() for t in tensors("lstm", torch.float32))
    infer, options = torch.ops.flashrnn_rs.infer, Options("lstm")
    with pytest.raises(ValueError, match=r"s0: got shape \[18\], wanted \[2, 3, 2, 3\]"):
        infer(wx, r, b, s0.half(), None, None, False, *options)
