"""The modules beside PyTorch's own."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
)

import flashrnn_rs
from flashrnn_rs import GRU, LSTM, RNN, SLSTM, rnn

T, B, I, H = 6, 4, 3, 8  # noqa: E741
PAIRS = {
    "LSTM": (LSTM, nn.LSTM, {}),
    "GRU": (GRU, nn.GRU, {}),
    "RNN": (RNN, nn.RNN, {}),
    "RNN relu": (RNN, nn.RNN, {"nonlinearity": "relu"}),
}
OPTIONS = [
    {},
    {"num_layers": 2},
    {"bias": False},
    {"batch_first": True},
    {"bidirectional": True},
    {"num_layers": 3, "bidirectional": True, "batch_first": True},
    {"dtype": torch.float64},
]


def pair(name, **options):
    """Returns our module and PyTorch's, with equal weights."""
    ours, theirs, more = PAIRS[name]
    torch.manual_seed(0)
    one = ours(I, H, **more, **options)
    torch.manual_seed(0)
    return one, theirs(I, H, **more, **options)


def flat(value):
    """Lists the tensors in nested tuples and PackedSequences."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [] if value is None else [tensor for part in value for tensor in flat(part)]


def assert_close(got, want, tolerance=1e-5):
    got, want = flat(got), flat(want)
    assert [t.shape for t in got] == [t.shape for t in want]
    assert [t.dtype for t in got] == [t.dtype for t in want]
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def results(module, x, hx=None):
    """Returns the outputs, and the gradients of the input, the states and the parameters."""
    module.zero_grad()
    output = module(x, hx)
    tensors = [t for t in flat(output) if t.is_floating_point() and t.numel()]
    loss = sum((t * torch.linspace(-1, 1, t.numel()).to(t).view_as(t)).sum() for t in tensors)
    wanted = [t for t in flat((x, hx)) if t.requires_grad]
    wanted += module.parameters()
    return [output, torch.autograd.grad(loss, wanted)]


def inputs(module, batched=True):
    """Returns a random input and random states."""
    dtype, directions = module.weight_ih_l0.dtype, 2 if module.bidirectional else 1
    shape = ((B, T, I) if module.batch_first else (T, B, I)) if batched else (T, I)
    state = (module.num_layers * directions, *([B] if batched else []), H)
    count = 2 if isinstance(module, (LSTM, nn.LSTM)) else 1
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    states = tuple(torch.randn(state, dtype=dtype, requires_grad=True) for _ in range(count))
    return x, states if count > 1 else states[0]


@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_agrees_with_torch(name, options, batched):
    one, other = pair(name, **options)
    x, hx = inputs(other, batched)
    assert_close(results(one, x), results(other, x))
    assert_close(results(one, x, hx), results(other, x, hx))
    assert one.state_dict().keys() == other.state_dict().keys()
    assert_close(tuple(one.state_dict().values()), tuple(other.state_dict().values()), 0)
    assert_close(tuple(map(tuple, one.all_weights)), tuple(map(tuple, other.all_weights)), 0)


@pytest.mark.parametrize("with_states", [False, True], ids=["zeros", "states"])
@pytest.mark.parametrize("lengths", [[6, 4, 2, 1], [2, 6, 1, 4], [3, 3, 3, 3]], ids=str)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_packed_sequences(name, options, lengths, with_states):
    one, other = pair(name, **options)
    x, hx = inputs(other)
    hx = hx if with_states else None
    is_sorted = lengths == sorted(lengths, reverse=True)
    packed = pack_padded_sequence(x.detach(), torch.tensor(lengths), enforce_sorted=is_sorted)
    packed.data.requires_grad_()
    got, want = results(one, packed, hx), results(other, packed, hx)
    assert isinstance(got[0][0], PackedSequence)
    assert_close(got, want)
    # Lengths do the same to a padded tensor, whatever is behind them.
    padded, _ = pad_packed_sequence(want[0][0], total_length=T)
    behind = torch.arange(T)[:, None] >= torch.tensor(lengths)
    dirty = x.detach().masked_fill(behind[:, :, None], torch.nan)
    output, last = one(dirty, hx, lengths=torch.tensor(lengths))
    assert_close((output, last), (padded, want[0][1]))
    (gradient,) = torch.autograd.grad(output.sum(), one.weight_ih_l0)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", PAIRS)
def test_resets_separate_documents(name, bidirectional):
    one, other = pair(name, bidirectional=bidirectional, num_layers=2)
    x, _ = inputs(other)
    resets = torch.zeros(T, B, dtype=torch.bool)
    resets[2] = resets[5] = True
    for lengths in (None, torch.full((B,), 5)):
        output, last = one(x, resets=resets, lengths=lengths)
        pieces = [x[:2], x[2:5], *([x[5:]] if lengths is None else [])]
        want = [other(piece)[0] for piece in pieces]
        assert_close(output[: 6 if lengths is None else 5], torch.cat(want))
        ends = [flat(other(pieces[-1])[1])[0], flat(other(pieces[0])[1])[0]]
        h = flat(last)[0]
        assert_close(h[0], ends[0][0])
        if bidirectional:
            assert_close(h[1], ends[1][1])


def test_a_reset_at_the_first_step_forgets_hx():
    one, other = pair("LSTM", bidirectional=True)
    x, hx = inputs(other)
    resets = torch.zeros(T, B, dtype=torch.bool)
    resets[0] = True
    forgotten = tuple(torch.cat([torch.zeros_like(h[:1]), h[1:]]) for h in hx)
    assert_close(one(x, hx, resets=resets), other(x, forgotten))


@pytest.mark.parametrize("kind", [LSTM, GRU, RNN, SLSTM])
def test_heads_are_independent(kind):
    torch.manual_seed(0)
    module = kind(I, H, heads=2)
    assert module.weight_hh_l0.shape[1] == H // 2
    x = torch.randn(T, B, I)
    output, last = module(x)
    for units in (slice(0, 4), slice(4, 8)):
        single = kind(I, H // 2)
        for name, parameter in module.named_parameters():
            rows = parameter.unflatten(0, (-1, H))[:, units].flatten(0, 1)
            single.get_parameter(name).data = rows
        one, end = single(x)
        assert_close((output[..., units], flat(last)[0][..., units]), (one, flat(end)[0]))


def test_slstm_is_the_operator_on_a_linear_layer():
    module = SLSTM(I, H, batch_first=True, heads=2)
    x = torch.randn(B, T, I)
    wx = nn.functional.linear(x, module.weight_ih_l0).view(B, T, 4, 2, 4)
    b = (module.bias_ih_l0 + module.bias_hh_l0).view(4, 2, 4)
    h, last = rnn(wx, module.weight_hh_l0.view(4, 2, 4, 4), b, cell="slstm")
    output, states = module(x)
    assert len(states) == 4
    assert_close(output, h.flatten(2), 0)
    assert_close(torch.stack(states)[:, 0], last.flatten(2), 0)
    again, _ = module(x[:, 3:], module(x[:, :3])[1])
    assert_close(again, output[:, 3:])


def test_dropout_lies_between_layers():
    module = LSTM(I, H, num_layers=2, dropout=1.0)
    x = torch.randn(T, B, I)
    first = LSTM(I, H)
    first.load_state_dict({k: v for k, v in module.state_dict().items() if "l0" in k})
    second = LSTM(H, H)
    named = {k.replace("l1", "l0"): v for k, v in module.state_dict().items() if "l1" in k}
    second.load_state_dict(named)
    assert_close(module(x)[0], second(torch.zeros(T, B, H))[0])
    assert_close(module.eval()(x)[0], second(first(x)[0])[0])
    with pytest.warns(UserWarning, match="dropout 0.5 has no effect"):
        LSTM(I, H, dropout=0.5)


@pytest.mark.parametrize("save", ["gates", "recompute"])
def test_save(save):
    one, other = pair("GRU")
    one.save = save
    x, hx = inputs(other)
    assert_close(results(one, x, hx), results(other, x, hx))


def test_copies_pickles_and_moves():
    module = LSTM(I, H, num_layers=2, bidirectional=True, heads=2)
    x = torch.randn(T, B, I)
    want = module(x)
    stream = io.BytesIO()
    torch.save(module, stream)
    stream.seek(0)
    copies = [
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(stream, weights_only=False),
    ]
    for one in copies:
        assert_close(one(x), want, 0)
        assert one.weight_hh_l0 is not module.weight_hh_l0
    double = copy.deepcopy(module).double()
    assert double(x.double())[0].dtype == torch.float64
    half = copy.deepcopy(module).bfloat16()
    assert [t.dtype for t in flat(half(x.bfloat16()))] == [torch.bfloat16] * 3
    assert LSTM(I, H, device="meta").to_empty(device="cpu")(x)[0].shape == (T, B, H)
    module.flatten_parameters()
    assert repr(module) == "LSTM(3, 8, num_layers=2, bidirectional=True, heads=2)"


def test_states_can_be_changed_in_place():
    one, other = pair("LSTM")
    x, _ = inputs(other)
    for module in (one, other):
        _, hx = module(x)
        for state in hx:
            state[:, 1] = 0
        sum(state.sum() for state in flat(module(x, hx))).backward()
    assert_close(one.weight_hh_l0.grad, other.weight_hh_l0.grad)


def test_parametrizations_and_functional_calls():
    one, other = pair("GRU")
    x, _ = inputs(other)
    doubled = {name: 2 * parameter for name, parameter in one.named_parameters()}
    got = torch.func.functional_call(one, doubled, (x,))
    assert_close(got, torch.func.functional_call(other, doubled, (x,)))
    for module in (one, other):
        nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    assert_close(results(one, x), results(other, x))


def test_autocast_like_torch():
    one, other = pair("LSTM")
    x, _ = inputs(other)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, want = one(x), other(x)
    assert_close(got, want, 2e-2)


@pytest.mark.parametrize("name", PAIRS)
def test_compiled_equals_eager(name):
    torch.compiler.reset()
    one, other = pair(name, num_layers=2, bidirectional=True)
    compiled = torch.compile(one, fullgraph=True, backend="aot_eager")
    x, hx = inputs(other)
    for got, want in zip(flat(results(compiled, x, hx)), flat(results(one, x, hx)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [LSTM, GRU, RNN, SLSTM])
def test_export(kind):
    module = kind(I, H, num_layers=2, bidirectional=True, batch_first=True)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")}
    exported = torch.export.export(module, (torch.randn(B, T, I),), dynamic_shapes=(sizes,))
    x = torch.randn(B + 1, T + 2, I)
    assert_close(exported.module()(x), module(x), 0)


def test_compiled_with_lengths_resets_and_packed_sequences():
    torch.compiler.reset()
    module, _ = pair("GRU", bidirectional=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x, lengths = torch.randn(T, B, I), torch.tensor([3, 6, 2, 1])
    options = {"lengths": lengths, "resets": torch.rand(T, B) < 0.3}
    assert_close(compiled(x, **options), module(x, **options))
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    in_parts = torch.compile(module, backend="aot_eager")  # PyTorch cuts the graph here
    assert_close(in_parts(packed), module(packed))


def test_inductor():
    torch.compiler.reset()
    one, other = pair("LSTM")
    x, hx = inputs(other)
    assert_close(results(torch.compile(one, fullgraph=True), x, hx), results(other, x, hx))


def test_empty_inputs():
    module = LSTM(I, H, bidirectional=True)
    output, (h, _) = module(torch.zeros(T, 0, I))
    assert (output.shape, h.shape) == ((T, 0, 2 * H), (2, 0, H))
    hx = torch.randn(2, B, H), torch.randn(2, B, H)
    output, last = module(torch.zeros(0, B, I), hx, resets=torch.zeros(0, B))
    assert output.shape == (0, B, 2 * H)
    assert_close(last, hx)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LSTM(I, H, proj_size=2), "proj_size: got 2"),
        (lambda: LSTM(0, H), "input_size: got 0, wanted at least 1"),
        (lambda: LSTM(I, H, heads=3), "heads: got 3, wanted a divisor of hidden_size 8"),
        (lambda: LSTM(I, H, 2, dropout=1.5), "dropout: got 1.5"),
        (lambda: RNN(I, H, nonlinearity="sigmoid"), "nonlinearity: got sigmoid"),
        (lambda: LSTM(I, H)(torch.zeros(T, B, 2)), r"input: got shape \[2\], wanted \[3\]"),
        (lambda: LSTM(I, H)(torch.zeros(T)), "input: got shape"),
        (lambda: LSTM(I, H)(torch.zeros(T, B, I), torch.zeros(1, B, H)), "hx: got 1, wanted 2"),
        (lambda: GRU(I, H)(torch.zeros(T, B, I), torch.zeros(2, B, H)), "hx: got shape"),
        (lambda: GRU(I, H)(torch.zeros(T, I), lengths=torch.ones(1)), "lengths: can't"),
        (
            lambda: GRU(I, H)(pack_sequence([torch.zeros(T, I)]), resets=torch.zeros(T, 1)),
            "lengths and resets: can't be combined",
        ),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises((ValueError, NotImplementedError), match=message):
        make()


def test_names_are_exported():
    for name in ("LSTM", "GRU", "RNN", "SLSTM", "convert", "flashrnn", "rnn"):
        assert callable(getattr(flashrnn_rs, name))
