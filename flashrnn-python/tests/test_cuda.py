"""The operator on CUDA, beside the CPU in float64."""

import pytest
import torch

import reference
from flashrnn_rs import rnn
from flashrnn_rs._plans import Options
from on_cuda import (
    MAX_ERRORS,
    assert_close,
    assert_same_bits,
    in_f64,
    needs_cuda,
    passes,
    tensors,
    to_cpu,
)

pytestmark = needs_cuda

CELLS = list(reference.CELLS)
DTYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float16),
    (torch.float16, torch.float32),
]
LENGTHS = [3, 0, 9]
RESETS = [[0, 1, 0, 0, 1, 0, 0, 0, 0], [0] * 9, [1, 0, 0, 0, 0, 0, 0, 0, 1]]
OPTIONS = [
    {},
    {"lengths": LENGTHS},
    {"resets": RESETS},
    {"lengths": LENGTHS, "resets": RESETS, "reverse": True, "save": "recompute"},
    {"forward_clip": 0.3, "recurrent_grad_clip": 0.1},
    {"cut_recurrent_grad": True},
]


@pytest.fixture(autouse=True)
def memory_full_of_nan():
    """Fills what is allocated with NaN, so that a result that nobody writes is found."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def on_cuda(options):
    kinds = {"lengths": torch.int64, "resets": torch.bool}
    return {
        k: torch.tensor(v, dtype=kinds[k], device="cuda") if k in kinds else v
        for k, v in options.items()
    }


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_values_and_gradients(cell, dtypes):
    given = tensors(cell, *dtypes)
    options = on_cuda(OPTIONS[1])
    got = passes(given, cell=cell, **options)
    wanted = [dtypes[0], torch.float32, *(tensor.dtype for tensor in given)]
    assert [tensor.dtype for tensor in got] == wanted
    want = passes(in_f64(given), cell=cell, **to_cpu(options))
    assert_close(got, want, MAX_ERRORS[dtypes[0]], cell)
    assert_same_bits(passes(given, cell=cell, **options), got)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert_same_bits(rnn(*given, cell, **options), got[:2])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_options(cell, options):
    given, options = tensors(cell), on_cuda(options)
    got = passes(given, cell=cell, **options)
    want = passes(in_f64(given), cell=cell, **to_cpu(options))
    assert_close(got, want, MAX_ERRORS[torch.float32], cell)


@pytest.mark.parametrize("save", ["gates", "recompute"])
@pytest.mark.parametrize(
    ("heads", "dim", "dtype"),
    [
        (12, 64, torch.bfloat16),  # one kernel for all steps
        (3, 33, torch.bfloat16),  # rows that are not aligned
        (1, 768, torch.bfloat16),  # one kernel over the whole GPU
        (1, 600, torch.float32),  # one kernel per step
    ],
    ids=str,
)
def test_kinds_of_kernels(heads, dim, dtype, save):
    given = tensors("lstm", dtype, heads=heads, dim=dim, batch=5, time=40)
    lengths = torch.tensor([40, 7, 0, 39, 12], device="cuda")
    got = passes(given, lengths=lengths, save=save)
    want = passes(in_f64(given), lengths=lengths.cpu())
    assert_close(got, want, MAX_ERRORS[dtype])


def test_time_major_tensors():
    wx, r, b, s0 = tensors("gru")
    resets = on_cuda({"resets": RESETS})["resets"]
    want = passes([wx, r, b, s0], cell="gru", resets=resets)
    turned = wx.detach().transpose(0, 1).contiguous().requires_grad_()
    h, last = rnn(turned, r, b, s0, "gru", resets=resets.T, time_major=True)
    assert_close([h.transpose(0, 1), last], want[:2], 1e-6)


def test_only_wanted_gradients_are_computed():
    given = tensors("gru")
    full = torch.autograd.grad(rnn(*given, "gru")[0].sum(), given)
    for k in range(4):
        some = [tensor.detach() for tensor in given]
        some[k].requires_grad_()
        (one,) = torch.autograd.grad(rnn(*some, "gru")[0].sum(), some[k])
        assert torch.equal(one, full[k])


def test_lengths_are_clamped():
    given = [tensor.detach() for tensor in tensors("lstm")]
    far = torch.tensor([-4, 2**40, 5], device="cuda")
    near = torch.tensor([0, 9, 5], device="cuda")
    assert_same_bits(rnn(*given, lengths=far), rnn(*given, lengths=near))


@pytest.mark.parametrize(("batch", "time"), [(0, 3), (3, 0)])
def test_empty_tensors_have_empty_results(batch, time):
    wx = torch.zeros(batch, time, 4, 2, 64, device="cuda", requires_grad=True)
    _, r, b, _ = tensors("lstm")
    h, last = rnn(wx, r, b)
    assert (h.shape, last.shape) == ((batch, time, 2, 64), (2, batch, 2, 64))
    (h.sum() + last.sum()).backward()
    assert not r.grad.any()


def test_f64_is_refused_in_words():
    given = [tensor.detach().double() for tensor in tensors("lstm")]
    with pytest.raises(NotImplementedError, match=r"f64.*CPU"):
        rnn(*given)


def test_tensors_on_the_cpu_are_refused_in_words():
    wx, r, b, s0 = tensors("lstm")
    with pytest.raises(ValueError, match="r: got a tensor on cpu, wanted cuda:0 as wx"):
        rnn(wx, r.cpu(), b)
    with pytest.raises(ValueError, match="s0: got a tensor on cpu, wanted cuda:0 as wx"):
        rnn(wx, r, b, s0.cpu())


@pytest.mark.parametrize("options", OPTIONS[:4], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_opcheck(cell, options):
    torch.use_deterministic_algorithms(False)  # opcheck compares NaN that nobody reads
    given = [tensor.detach() for tensor in tensors(cell)]
    options = on_cuda(options)
    lengths, resets = options.pop("lengths", None), options.pop("resets", None)
    lengths = None if lengths is None else lengths.int()
    options = Options(cell=cell, **options)
    ops, inputs = torch.ops.flashrnn_rs, (*given, lengths, resets)
    torch.library.opcheck(ops.infer.default, (*inputs, True, *options))
    torch.library.opcheck(ops.infer.default, (*inputs, False, *options))
    # Of the saved gates, those beyond a row's length are neither written nor read.
    utils = ["test_schema", "test_autograd_registration", "test_faketensor"]
    torch.library.opcheck(ops.forward.default, (*inputs, *options), test_utils=utils)
    states, last, gates, wide = ops.forward(*inputs, *options)
    wx, r, b, s0 = given
    saved = (r, b, states, gates, wide, wx, s0, lengths, resets, states[0], last)
    torch.library.opcheck(ops.backward.default, (*saved, [True, True, True], *options))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("cell", CELLS)
def test_compiled_equals_eager(cell, backend):
    torch.compiler.reset()
    options = on_cuda(OPTIONS[3])
    given = tensors(cell)

    def call(wx, r, b, s0):
        h, last = rnn(2 * wx, r, b, s0, cell, **options)
        return h + 1, last

    compiled = torch.compile(call, fullgraph=True, backend=backend)
    assert_close(passes(given, compiled), passes(given, call), 1e-6)


def test_autocast_casts_the_input_and_keeps_master_weights():
    given = tensors("lstm")
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cuda", dtype=dtype):
            h, last = rnn(*given)
        assert (h.dtype, last.dtype) == (dtype, torch.float32)
        want, _ = rnn(given[0].to(dtype), *given[1:])
        assert torch.equal(h, want)
        gradients = torch.autograd.grad(h.float().sum(), given)
        assert [gradient.dtype for gradient in gradients] == [torch.float32] * 4


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_current_device_is_left_as_it_was():
    given = tensors("lstm")
    want = passes(given)
    others = [tensor.detach().to("cuda:1").requires_grad_() for tensor in given]
    with torch.cuda.device(0):
        got = passes(others)
        assert torch.cuda.current_device() == 0
        assert torch.zeros(1, device="cuda").device.index == 0
    assert all(tensor.device.index == 1 for tensor in got)
    assert_same_bits([tensor.cpu() for tensor in got], [tensor.cpu() for tensor in want])
