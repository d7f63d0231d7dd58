import pytest
import torch

from flashrnn_rs import GRU, LSTM, RNN, SLSTM

KINDS = [LSTM, GRU, RNN, SLSTM]


def close(one, other, tolerance=1e-5):
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_equal_the_whole(kind):
    module = kind(3, 8, num_layers=2, heads=2, bias=kind is not GRU)
    x = torch.randn(7, 4, 3)
    output, last = module(x)
    stream = module.stream(batch_size=4)
    close(torch.stack([stream.step(one) for one in x]), output)
    last = last if isinstance(last, tuple) else (last,)
    for one, other in zip(stream.states, last, strict=True):
        close(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_continues_from_states(kind):
    module = kind(3, 8, num_layers=2)
    x = torch.randn(7, 1, 3)
    output, _ = module(x)
    _, hx = module(x[:4])
    stream = module.stream()
    stream.states = hx if isinstance(hx, tuple) else (hx,)
    close(torch.stack([stream.step(one) for one in x[4:]]), output[4:])


def test_reset():
    module = LSTM(3, 8)
    x = torch.randn(2, 4, 3)
    stream = module.stream(4)
    first = stream.step(x[0])
    stream.reset(torch.tensor([True, False, True, False]))
    output = stream.step(x[1])
    close(output[::2], module(x[1:, ::2])[0][0])
    close(output[1::2], module(x[:, 1::2])[0][1])
    stream.reset()
    assert torch.equal(stream.step(x[0]), first)


def test_a_stream_keeps_its_weights():
    module = LSTM(3, 8)
    x = torch.randn(1, 3)
    stream = module.stream()
    want = stream.step(x)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    stream.reset()
    got = stream.step(x)
    assert torch.equal(got, want)
    assert not got.requires_grad


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(dtype, autocast):
    module = SLSTM(3, 8, dtype=dtype)
    x = torch.randn(5, 2, 3, dtype=dtype)
    output, _ = module(x)
    stream = module.stream(2)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        steps = torch.stack([stream.step(one) for one in x])
    assert steps.dtype == dtype
    exact = 3e-2 if autocast or dtype == torch.bfloat16 else 1e-5
    close(steps, output, exact)


def test_what_is_refused():
    with pytest.raises(ValueError, match="bidirectional: a stream runs forwards only"):
        LSTM(3, 8, bidirectional=True).stream()
    stream = LSTM(3, 8).stream(2)
    with pytest.raises(ValueError, match=r"x: got shape \[3, 3\], wanted \[2, 3\]"):
        stream.step(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="states: got shape"):
        stream.states = (torch.zeros(1, 3, 8), torch.zeros(1, 3, 8))
    with pytest.raises(ValueError, match="states: got 1, wanted 2 tensors"):
        stream.states = (torch.zeros(1, 2, 8),)
