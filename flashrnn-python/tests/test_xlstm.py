"""The cells of xlstm and tirex-ts, with their own loops and with ours."""

import copy

import pytest
import torch
from tirex.models.slstm.cell import sLSTMBlockConfig
from tirex.models.slstm.cell import sLSTMCell as TirexCell
from xlstm.blocks.slstm.cell import sLSTMCell_vanilla, sLSTMCellConfig

from flashrnn_rs import rnn
from flashrnn_rs.xlstm import slstm_forward, slstm_impl

B, T, N, D = 3, 9, 2, 8


class Ours(sLSTMCell_vanilla):
    _impl = slstm_impl


def cells(**options):
    """Returns xlstm's cell twice, with its own loop and with ours."""
    torch.manual_seed(0)
    config = sLSTMCellConfig(
        hidden_size=N * D,
        num_heads=N,
        backend="vanilla",
        dtype="float32",
        recurrent_weight_init="standard",
        **options,
    )
    theirs = sLSTMCell_vanilla(config)
    ours = Ours(copy.deepcopy(config))
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def results(cell, x, state):
    output, last = cell(x, state)
    loss = (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum()
    loss = loss + last[0].square().sum()
    wanted = [x, *cell.parameters()]
    return [output, last, *torch.autograd.grad(loss, wanted)]


@pytest.mark.parametrize("input_shape", ["BSGNH", "SBGNH"])
@pytest.mark.parametrize("output_shape", ["BNSH", "SBH"])
@pytest.mark.parametrize("with_state", [False, True])
def test_xlstm(input_shape, output_shape, with_state):
    ours, theirs = cells(input_shape=input_shape, output_shape=output_shape)
    x = torch.randn(*((B, T) if input_shape == "BSGNH" else (T, B)), 4 * N * D, requires_grad=True)
    state = theirs(x, None)[1].detach() if with_state else None
    for one, other in zip(results(ours, x, state), results(theirs, x, state), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_xlstms_clips_have_an_effect():
    ours, _ = cells(
        forward_clipval=0.1, gradient_recurrent_clipval=0.01, gradient_recurrent_cut=True
    )
    x = torch.randn(B, T, 4 * N * D, requires_grad=True)
    output, _ = ours(x)
    assert output.abs().max() <= 0.1
    r = ours._recurrent_kernel.view(N, 4, D, D).transpose(0, 1)
    options = {"forward_clip": 0.1, "recurrent_grad_clip": 0.01, "cut_recurrent_grad": True}
    h, _ = rnn(x.view(B, T, 4, N, D), r, ours._bias.view(4, N, D), cell="slstm", **options)
    torch.testing.assert_close(output.permute(0, 2, 1, 3), h)
    (one,) = torch.autograd.grad(output.sum(), x)
    assert torch.equal(one, torch.autograd.grad(h.sum(), x)[0])


def test_other_functions_of_xlstm_are_refused():
    ours, _ = cells()
    ours.config.function = "lstm"
    with pytest.raises(ValueError, match="function: got lstm, wanted slstm"):
        ours(torch.randn(B, T, 4 * N * D))


def tirex_cell():
    torch.manual_seed(0)
    cell = TirexCell(sLSTMBlockConfig(N * D, N), "torch")
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.normal_(std=0.3)
    return cell


@pytest.mark.parametrize("with_state", [False, True])
def test_tirex(with_state):
    theirs = tirex_cell()
    ours = copy.deepcopy(theirs)
    ours._impl_forward_torch = slstm_forward
    x = torch.randn(B, T, 4 * N * D)
    state = theirs(x, None)[1] if with_state else None
    for one, other in zip(ours(x, state), theirs(x, state), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        # Here tirex computes in bfloat16.
        torch.testing.assert_close(one, other, rtol=3e-2, atol=3e-2)


def test_tirexs_loop_in_float32():
    cell = tirex_cell()
    r, b = cell._recurrent_kernel_.detach(), cell._bias_.detach()
    given = torch.randn(T, B, 4 * N * D), torch.zeros(4, B, N * D), r, b
    for one, other in zip(slstm_forward(*given), cell._impl_forward_torch(*given), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
