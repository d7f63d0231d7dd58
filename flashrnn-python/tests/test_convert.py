import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import flashrnn_rs
from flashrnn_rs import convert


class Model(nn.Module):
    """Recurrent networks in several places, two of them tied."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 8, num_layers=2, bidirectional=True, batch_first=True, dropout=0.2)
        self.grus = nn.ModuleList(nn.GRU(16, 16, bidirectional=k == 1) for k in range(2))
        self.rnn = nn.Sequential(nn.RNN(32, 4, num_layers=2, nonlinearity="relu"))
        self.twin = self.rnn[0]
        self.tied = nn.GRU(16, 16)
        self.tied.weight_hh_l0 = self.grus[0].weight_hh_l0

    def forward(self, x):
        x = self.lstm(x)[0]
        for gru in self.grus:
            x = gru(x)[0]
        x = self.rnn(x)[0]
        return x + self.tied(torch.cat([x] * 4, 2))[0][..., :4]


def gradients(model, x):
    loss = model(x).square().sum()
    return [loss, *torch.autograd.grad(loss, list(model.parameters()))]


def test_outputs_and_gradients_stay():
    model = Model().eval()
    x = torch.randn(5, 7, 3)
    names = list(model.state_dict())
    parameters = dict(model.named_parameters())
    want = gradients(model, x)
    assert convert(model) is model
    assert not any(isinstance(module, nn.RNNBase) for module in model.modules())
    assert list(model.state_dict()) == names
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
    assert model.twin is model.rnn[0]
    assert model.tied.weight_hh_l0 is model.grus[0].weight_hh_l0
    assert not model.lstm.training
    assert model.lstm.dropout == 0.2
    for one, other in zip(gradients(model, x), want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_module_alone_is_replaced():
    module = nn.LSTM(3, 8)
    new = convert(module)
    assert isinstance(new, flashrnn_rs.LSTM)
    x = torch.randn(5, 7, 3)
    torch.testing.assert_close(new(x), module(x), rtol=1e-5, atol=1e-5)


def test_making_the_modules_draws_no_random_numbers():
    model = Model()
    torch.manual_seed(1)
    convert(model)
    one = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), one)


def test_hooks_and_attributes_stay():
    model = nn.Sequential(nn.GRU(3, 8))
    seen = []
    handles = [
        model[0].register_forward_hook(lambda module, *_: seen.append(("after", type(module)))),
        model[0].register_forward_pre_hook(
            lambda module, *_: seen.append(("before", type(module)))
        ),
        model[0].register_full_backward_hook(lambda *_: seen.append("backward")),
        model[0].register_forward_hook(
            lambda module, given, kwargs, out: seen.append("kwargs"), with_kwargs=True
        ),
    ]
    model[0].note = "kept"
    convert(model)
    model(torch.randn(5, 7, 3, requires_grad=True))[0].sum().backward()
    ours = flashrnn_rs.GRU
    assert seen == [("before", ours), ("after", ours), "kwargs", "backward"]
    assert model[0].note == "kept"
    for handle in handles:
        handle.remove()
    seen.clear()
    model(torch.randn(5, 7, 3))
    assert not seen


def test_frozen_parameters_stay_frozen():
    module = nn.LSTM(3, 8).requires_grad_(False)
    output, _ = convert(module)(torch.randn(5, 7, 3))
    assert not output.requires_grad


class Other(nn.LSTM):
    pass


def weight_norm():
    return parametrizations.weight_norm(nn.LSTM(3, 8), "weight_hh_l0")


def old_weight_norm():
    return nn.utils.weight_norm(nn.LSTM(3, 8), "weight_hh_l0")


def with_bound_hook():
    module = nn.LSTM(3, 8)
    module._register_load_state_dict_pre_hook(lambda *_: None, with_module=True)
    return module


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Other(3, 8), r"1: can't be converted: it is a Other"),
        (lambda: nn.LSTM(3, 8, proj_size=2), r"1: can't be converted: it has projections"),
        (weight_norm, r"1: can't be converted: it is a ParametrizedLSTM"),
        (old_weight_norm, r"1: can't be converted: its parameters are not"),
        (with_bound_hook, r"1: can't be converted: it has a hook for load_state_dict"),
    ],
)
def test_what_is_refused_leaves_the_model_as_it_was(make, message):
    model = nn.Sequential(nn.GRU(3, 3), make())
    with pytest.raises(ValueError, match=message):
        convert(model)
    assert isinstance(model[0], nn.GRU)
