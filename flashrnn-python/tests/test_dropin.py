"""The drop-in beside FlashRNN 1.0.8, whose vanilla backend is a loop in PyTorch."""

import subprocess
import sys
from dataclasses import dataclass

import flashrnn as peer
import pytest
import torch

import reference
from flashrnn_rs import FlashRNNConfig, flashrnn, rnn

CELLS = ["elman", "gru", "lstm", "slstm"]


def ordered(tensor, axes, order):
    return tensor.permute([axes.index(axis) for axis in order]).contiguous()


def tensors(config, dtype=torch.float32, **sizes):
    """Returns Wx, R, b and states in the orders of a config."""
    sizes = {"dim": 8, "heads": 3, **sizes}
    arrays = reference.inputs(config.function, **sizes)
    wx, r, b, s0 = (torch.tensor(array, dtype=dtype) for array in arrays)
    given = [
        ordered(wx, "BTGHD", config.input_shape),
        ordered(r, "GHDP", config.recurrent_shape),
        ordered(b, "GHD", config.bias_shape),
        ordered(s0[:, :, None], "SBTHD", config.output_shape),
    ]
    return [tensor.requires_grad_() for tensor in given]


def results(function, config, given, with_states, kind):
    wx, r, b, states = given
    states = states if with_states else None
    fields = {k: v for k, v in vars(config).items() if k in kind.__dataclass_fields__}
    out, last = function(wx, r, b, states, config=kind(**fields))
    axes = config.output_shape
    # The loss is on h, since sLSTM's other states hold its stabiliser constant here.
    h = ordered(out, axes, "SBTHD")[0]
    loss = (h * torch.linspace(-1, 1, h.numel(), dtype=h.dtype).view_as(h)).sum()
    loss = loss + ordered(last, axes, "SBTHD")[0].square().sum()
    given = given if with_states else given[:3]
    return [out, last, *torch.autograd.grad(loss, given)]


SHAPES = [
    {},
    {"recurrent_shape": "HGDP", "bias_shape": "HGD"},
    {"recurrent_shape": "HPGD", "bias_shape": "HDG"},
    {"recurrent_shape": "HPDG", "input_shape": "TBGHD"},
    {"input_shape": "TBGHD", "output_shape": "STBHD"},
]


@pytest.mark.parametrize("with_states", [False, True], ids=["zeros", "states"])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_agrees_with_flashrnn(cell, shapes, with_states):
    options = dict(backend="vanilla", function=cell, num_heads=3, head_dim=8, dtype="float32")
    config = peer.FlashRNNConfig(**options, **shapes)
    given = tensors(config)
    got = results(flashrnn, config, given, with_states, FlashRNNConfig)
    want = results(peer.flashrnn, config, given, with_states, peer.FlashRNNConfig)
    for k, (one, other) in enumerate(zip(got, want, strict=True)):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        if cell == "slstm" and k == 5:  # m is held constant here, and c, n and h count alike
            one, other = (ordered(t, config.output_shape, "SBTHD")[:3] for t in (one, other))
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_agrees_without_a_config(cell):
    given = tensors(FlashRNNConfig(function=cell))[:3]
    for one, other in zip(
        flashrnn(*given, function=cell),
        peer.flashrnn(*given, function=cell, backend="vanilla"),
        strict=True,
    ):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_the_config_derives_what_flashrnns_does(cell):
    for sizes in ({"num_heads": 4, "head_dim": 16}, {"hidden_dim": 64, "num_heads": 2}):
        options = dict(function=cell, dtype="float16", dtype_r="float32", **sizes)
        ours, theirs = FlashRNNConfig(**options), peer.FlashRNNConfig(**options)
        for name, value in vars(ours).items():
            if name != "backend":  # theirs falls back from one kernel to another
                assert value == getattr(theirs, name), name
        for name in ("torch_dtype", "torch_dtype_b", "torch_dtype_r", "torch_dtype_w", "input_dim"):
            assert getattr(ours, name) == getattr(theirs, name), name


def test_initial_values():
    config = FlashRNNConfig(function="lstm", backend="vanilla", initial_val=[0.5, -0.5])
    wx, r, b, _ = tensors(config)
    states = torch.tensor([0.5, -0.5]).view(2, 1, 1, 1, 1).expand(2, 3, 1, 3, 8)
    got = flashrnn(wx, r, b, config=config)
    assert torch.equal(got[0], flashrnn(wx, r, b, states)[0])


def test_options_reach_the_recurrence():
    config = FlashRNNConfig(
        function="lstm",
        backend="vanilla",
        forward_clipval=0.3,
        gradient_recurrent_clipval=0.01,
        gradient_recurrent_cut=False,
    )
    wx, r, b, _ = tensors(config)
    options = {"forward_clip": 0.3, "recurrent_grad_clip": 0.01}
    for cut in (False, True):
        config.gradient_recurrent_cut = options["cut_recurrent_grad"] = cut
        got = torch.autograd.grad(flashrnn(wx, r, b, config=config)[0][0].sum(), wx)
        want = torch.autograd.grad(rnn(wx, r, b, **options)[0].sum(), wx)
        assert torch.equal(got[0], want[0])


def test_lengths_resets_and_reverse():
    wx, r, b, _ = tensors(FlashRNNConfig(function="gru"))
    lengths, resets = torch.tensor([7, 0, 5]), torch.rand(3, 7) < 0.3
    options = {"lengths": lengths, "resets": resets, "reverse": True, "save": "recompute"}
    states, last = flashrnn(wx, r, b, function="gru", **options)
    h, want = rnn(wx, r, b, cell="gru", **options)
    assert torch.equal(states[0], h)
    assert torch.equal(last[:, :, 0], want)


def test_mixed_precision_casts_as_the_config_says():
    config = FlashRNNConfig(function="lstm", backend="cuda", dtype="bfloat16", dtype_r="float32")
    wx, r, b, _ = given = tensors(config)
    states, last = flashrnn(*given, config=config)
    assert (states.dtype, last.dtype) == (torch.bfloat16, torch.bfloat16)
    want, _ = rnn(wx.bfloat16(), r, b.bfloat16().float(), given[3][:, :, 0])
    assert torch.equal(states[0], want)
    gradients = torch.autograd.grad(states.float().sum(), given)
    assert [d.dtype for d in gradients] == [torch.float32] * 4
    config.enable_automatic_mixed_precision = False
    assert flashrnn(*given, config=config)[0].dtype == torch.float32


def test_compiled_equals_eager():
    torch.compiler.reset()
    config = FlashRNNConfig(function="slstm", backend="vanilla", recurrent_shape="HPGD")
    given = tensors(config)[:3]
    call = lambda *given: flashrnn(*given, config=config)[0][0].square().sum()  # noqa: E731
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for one, other in zip(
        torch.autograd.grad(compiled(*given), given),
        torch.autograd.grad(call(*given), given),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_a_subclass_of_the_config_works():
    @dataclass
    class Config(FlashRNNConfig):
        extra: int = 3

        def __post_init__(self):
            self.function = "slstm"
            super().__post_init__()

    config = Config(head_dim=8, num_heads=3, backend="vanilla")
    assert (config.num_states, config.extra) == (4, 3)
    assert flashrnn(*tensors(config)[:3], config=config)[0].shape == (4, 3, 7, 3, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"function": "rnn"}, "function: got rnn, wanted one of elman, elman_relu, gru"),
        ({"backend": "cudnn"}, "backend: got cudnn"),
        ({"recurrent_shape": "GHD"}, "recurrent_shape: got GHD"),
        ({"dtype": "int8"}, "dtype: got int8"),
    ],
)
def test_bad_configs_are_refused_in_words(change, message):
    with pytest.raises(ValueError, match=message):
        FlashRNNConfig(**change)


def test_install_replaces_the_package():
    script = (
        "import flashrnn_rs; flashrnn_rs.install()\n"
        "from flashrnn import flashrnn, FlashRNNConfig\n"
        "from flashrnn.flashrnn import FlashRNNConfig as Same\n"
        "assert flashrnn is flashrnn_rs.flashrnn and FlashRNNConfig is Same\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
