"""`process_sequence` beside sb3-contrib's, which loops over time."""

import copy

import pytest
import torch
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from torch import nn

import flashrnn_rs
from flashrnn_rs.rl import process_sequence

B, T, I, H = 4, 12, 5, 16  # noqa: E741
SHARES = [0.0, 0.2, 1.0]


def results(function, lstm, features, states, starts):
    output, last = function(features, states, starts, lstm)
    loss = (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum()
    loss = loss + sum(state.square().sum() for state in last)
    wanted = [features, *states, *lstm.parameters()]
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [output, *last, *gradients]


@pytest.mark.parametrize("ours", [False, True], ids=["nn.LSTM", "ours"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("time", [1, T])
@pytest.mark.parametrize("share", SHARES)
def test_agrees_with_the_loop(share, time, layers, ours):
    torch.manual_seed(0)
    lstm = nn.LSTM(I, H, layers)
    features = torch.randn(B * time, I, requires_grad=True)
    states = tuple(torch.randn(layers, B, H, requires_grad=True) for _ in range(2))
    starts = (torch.rand(B * time) < share).float()
    given = (features, states, starts)
    want = results(RecurrentActorCriticPolicy._process_sequence, lstm, *given)
    got = results(process_sequence, flashrnn_rs.convert(lstm) if ours else lstm, *given)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_parameters_are_those_of_the_module_now():
    lstm = nn.LSTM(I, H)
    given = torch.randn(B * T, I), (torch.zeros(1, B, H),) * 2, torch.zeros(B * T)
    process_sequence(*given, lstm)
    with torch.no_grad():
        lstm.weight_hh_l0.mul_(2)
    lstm.bias_ih_l0 = nn.Parameter(torch.ones(4 * H))
    twin = copy.deepcopy(lstm)
    want = RecurrentActorCriticPolicy._process_sequence(*given, lstm)[0]
    for module in (lstm, twin):
        torch.testing.assert_close(process_sequence(*given, module)[0], want, rtol=1e-5, atol=1e-5)
    lstm.double()
    double = [torch.randn(B * T, I).double(), (torch.zeros(1, B, H).double(),) * 2, given[2]]
    assert process_sequence(*double, lstm)[0].dtype == torch.float64


def test_bidirectional_networks_are_refused():
    lstm = nn.LSTM(I, H, bidirectional=True)
    with pytest.raises(ValueError, match="bidirectional"):
        process_sequence(torch.zeros(T, I), (torch.zeros(2, 1, H),) * 2, torch.zeros(T), lstm)
