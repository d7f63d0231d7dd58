"""The modules, the drop-in and streams on CUDA."""

import copy

import flashrnn as peer
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import reference
from flashrnn_rs import GRU, LSTM, RNN, SLSTM, FlashRNNConfig, convert, flashrnn
from flashrnn_rs.rl import process_sequence
from on_cuda import assert_close, assert_same_bits, needs_cuda

pytestmark = needs_cuda

T, B, I, H = 20, 5, 16, 64  # noqa: E741
PEERS = {
    "LSTM": lambda **options: nn.LSTM(I, H, **options),
    "GRU": lambda **options: nn.GRU(I, H, **options),
    "RNN": lambda **options: nn.RNN(I, H, **options),
    "RNN relu": lambda **options: nn.RNN(I, H, nonlinearity="relu", **options),
}
OPTIONS = [
    {},
    {"bias": False},
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 3, "batch_first": True},
]


@pytest.fixture(autouse=True)
def full_precision():
    """Keeps cuDNN from rounding products to TF32."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = allowed


def flat(value):
    return [value] if isinstance(value, torch.Tensor) else [t for part in value for t in flat(part)]


def pair(name, **options):
    """Returns our module and PyTorch's, with equal weights."""
    torch.manual_seed(0)
    theirs = PEERS[name](**options).cuda()
    return convert(copy.deepcopy(theirs)), theirs


def results(module, x, *hx, wanted=()):
    """Returns the outputs, and the gradients of the parameters and of `wanted`."""
    outputs = flat(module(x, *hx))
    outputs = [t for t in outputs if t.is_floating_point()]
    loss = sum(
        (t.float() * torch.linspace(-1, 1, t.numel()).to(t).view_as(t)).sum() for t in outputs
    )
    return [*outputs, *torch.autograd.grad(loss, [*wanted, *module.parameters()])]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", PEERS)
def test_modules_beside_pytorchs(name, options):
    one, other = pair(name, **options)
    x = torch.randn(T, B, I, device="cuda", requires_grad=True)
    got, want = results(one, x, wanted=[x]), results(other, x, wanted=[x])
    for k, pair_of_results in enumerate(zip(got, want, strict=True)):
        assert_close(*([result] for result in pair_of_results), 1e-5, f"result {k}")


@pytest.mark.parametrize("name", PEERS)
def test_packed_sequences(name):
    one, other = pair(name, bidirectional=True)
    x, lengths = torch.randn(T, B, I, device="cuda"), torch.tensor([3, 20, 1, 7, 9])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    got, want = results(one, packed), results(other, packed)
    for k, pair_of_results in enumerate(zip(got, want, strict=True)):
        assert_close(*([result] for result in pair_of_results), 1e-5, f"result {k}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", PEERS)
def test_autocast_like_pytorch(name, dtype):
    one, other = pair(name, num_layers=2)
    x = torch.randn(T, B, I, device="cuda", requires_grad=True)
    with torch.autocast("cuda", dtype=dtype):
        got, want = one(x), other(x)
    # With any dtype, PyTorch casts the input of cuDNN to float16.
    assert {t.dtype for t in flat(got)} == {dtype}
    assert {t.dtype for t in flat(want)} == {torch.float16}
    # Both round h at every step.
    assert_close(flat(got), flat(want), 3e-2)
    grads = torch.autograd.grad(got[0].float().sum(), [x, *one.parameters()])
    wants = torch.autograd.grad(want[0].float().sum(), [x, *other.parameters()])
    for k, (grad, wanted) in enumerate(zip(grads, wants, strict=True)):
        assert grad.dtype == wanted.dtype
        assert_close([grad], [wanted], 8e-2, f"gradient {k}")


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("kind", [LSTM, GRU, RNN, SLSTM])
def test_heads_lengths_and_resets_beside_the_cpu(kind, heads):
    torch.manual_seed(0)
    module = kind(I, H, num_layers=2, bidirectional=True, heads=heads)
    x, lengths = torch.randn(T, B, I), torch.tensor([3, 20, 1, 7, 0])
    resets = torch.rand(T, B) < 0.1
    want = flat(module(x, lengths=lengths, resets=resets))
    module.cuda()
    got = flat(module(x.cuda(), lengths=lengths, resets=resets.cuda()))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cell", ["elman", "gru", "lstm", "slstm"])
def test_the_drop_in_beside_flashrnn(cell):
    arrays = reference.inputs(cell, dim=32, heads=3)
    wx, r, b, s0 = (torch.tensor(a, dtype=torch.float32, device="cuda") for a in arrays)
    fields = {"function": cell, "backend": "vanilla", "num_heads": 3, "head_dim": 32}
    given = (wx, r, b, s0[:, :, None])
    want = peer.flashrnn(*given, config=peer.FlashRNNConfig(**fields))
    got = flashrnn(*given, config=FlashRNNConfig(**fields))
    for one, other in zip(got, want, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one[:1], other[:1], rtol=1e-4, atol=1e-5)


def test_backends_of_flashrnn_cast_to_the_dtypes_of_the_config():
    arrays = reference.inputs("slstm", dim=64)
    wx, r, b, _ = (torch.tensor(a, dtype=torch.float32, device="cuda") for a in arrays)
    r.requires_grad_()
    config = FlashRNNConfig(function="slstm", backend="cuda", num_heads=2, head_dim=64)
    states, last = flashrnn(wx, r, b, config=config)
    assert (states.dtype, last.dtype) == (torch.bfloat16, torch.bfloat16)
    states[0].float().sum().backward()
    assert r.grad.dtype == torch.float32


def steps(stream, x):
    return torch.stack([stream.step(one) for one in x])


@pytest.mark.parametrize("sizes", [(64, 2), (600, 1)], ids=str)
@pytest.mark.parametrize("kind", [LSTM, GRU, SLSTM])
def test_a_stream_follows_the_current_stream(kind, sizes):
    hidden, heads = sizes
    torch.manual_seed(0)
    module = kind(I, hidden, num_layers=2, heads=heads).cuda()
    x = torch.randn(T, B, I, device="cuda")
    want, _ = module(x)
    stream = module.stream(batch_size=B)
    first = steps(stream, x)
    torch.testing.assert_close(first, want, rtol=1e-4, atol=1e-5)
    other = torch.cuda.Stream()
    other.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(other):
        torch.cuda._sleep(50_000_000)
        stream.reset()
        got = steps(stream, x)
    other.synchronize()
    assert_same_bits([got], [first])


@pytest.mark.parametrize("sizes", [(64, 2), (600, 1)], ids=str)
def test_a_step_can_be_captured(sizes):
    hidden, heads = sizes
    module = LSTM(I, hidden, num_layers=2, heads=heads).cuda()
    x = torch.randn(T, B, I, device="cuda")
    stream = module.stream(batch_size=B)
    want = steps(stream, x)
    static = x[0].clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = stream.step(static)
    stream.reset()
    for one, wanted in zip(x, want, strict=True):
        static.copy_(one)
        graph.replay()
        assert torch.equal(output, wanted)


def test_process_sequence():
    torch.manual_seed(0)
    lstm = nn.LSTM(I, H)
    features, starts = torch.randn(B * T, I), (torch.rand(B * T) < 0.1).float()
    states = (torch.randn(1, B, H), torch.randn(1, B, H))
    want = flat(process_sequence(features, states, starts, lstm))
    lstm.cuda()
    states = tuple(state.cuda() for state in states)
    got = flat(process_sequence(features.cuda(), states, starts.cuda(), lstm))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-4, atol=1e-5)
