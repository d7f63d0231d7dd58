"""Times this package, FlashRNN, PyTorch's modules and TorchRL's on one GPU.

Prints one line of JSON per figure. FlashRNN compiles its kernels with nvcc, for minutes, at its
first call; `--first-call` makes only that. Each subject is a run of its own:

    python benchmarks/on_cuda.py lstm                # rnn, the drop-in, nn.LSTM
    python benchmarks/on_cuda.py lstm --peer cuda    # FlashRNN's backend cuda
    python benchmarks/on_cuda.py stack [--peer cuda] # a stack of TiRex's sLSTM blocks
    python benchmarks/on_cuda.py torchrl             # LSTMModule with each recurrent_backend
    python benchmarks/on_cuda.py host                # the first call, and the host's part of calls

`call` is the time of one call among 100 between two events; `alone` that of a synchronised call.
Both are medians, in milliseconds.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

import flashrnn_rs
import flashrnn_rs.xlstm
from flashrnn_rs._plans import Options

SIZES = {"batch": 16, "time": 1024, "heads": 12, "dim": 64}


def report(what, **figures):
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}
    print(json.dumps({"what": what, **rounded}), flush=True)


def measure(what, call, calls=100, rounds=9, first_call=False):
    """Times a call, alone and among others."""
    try:
        call()
    except Exception as error:
        report(what, error=f"{type(error).__name__}: {error}"[:300])
        return
    torch.cuda.synchronize()
    if first_call:
        return
    between = {"call": [], "alone": []}
    for k in range(rounds + 1):
        for kind, count in (("call", calls), ("alone", 1)):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(count):
                call()
            end.record()
            torch.cuda.synchronize()
            if k > 0:
                between[kind].append(start.elapsed_time(end) / count)
    report(what, **{kind: statistics.median(times) for kind, times in between.items()})


def no_grad(call):
    def without_gradients():
        with torch.no_grad():
            call()

    return without_gradients


def training(forward, wanted):
    """Returns a call that computes gradients of what `forward` returns, by ones."""

    def step():
        h = forward()
        torch.autograd.grad(h, wanted, torch.ones_like(h))

    return step


def tensors(batch, time, heads, dim, dtype=torch.bfloat16):
    torch.manual_seed(0)
    wx = torch.randn(batch, time, 4, heads, dim, device="cuda").to(dtype)
    r = (torch.randn(4, heads, dim, dim, device="cuda") / dim**0.5).to(dtype)
    b = torch.randn(4, heads, dim, device="cuda").to(dtype)
    return [tensor.requires_grad_() for tensor in (wx, r, b)]


def flashrnn_peer():
    """Imports FlashRNN, which reads device properties that CUDA 13 no longer has."""
    import flashrnn

    module = sys.modules["flashrnn.flashrnn.flashrnn"]  # its package has a function of this name
    properties = torch.cuda.get_device_properties(0)
    module.get_gpu_info = lambda device_id=0: {
        "maxThreadsPerBlock": 1024,
        "regsPerMultiprocessor": 65536,
        "multiProcessorCount": properties.multi_processor_count,
        "sharedMemPerBlockOptin": properties.shared_memory_per_block_optin,
    }
    return flashrnn


def lstm(peer, first_call):
    wx, r, b = tensors(**SIZES)
    if peer:
        call = lambda: flashrnn_peer().flashrnn(  # noqa: E731
            wx, r, b, function="lstm", backend=peer, dtype="bfloat16"
        )
        if not first_call:
            got, want = call()[0], flashrnn_rs.flashrnn(wx, r, b)[0]
            difference = (got - want).float().norm() / want.float().norm()
            report(f"flashrnn {peer}: difference from ours", relative=difference.item())
        measure(f"flashrnn {peer}, forward", no_grad(call), 20, first_call=first_call)
        step = training(lambda: call()[0][0], (wx, r, b))
        measure(f"flashrnn {peer}, forward+backward", step, 5, first_call=first_call)
        return
    forward = lambda: flashrnn_rs.rnn(wx, r, b)  # noqa: E731
    dropin = lambda: flashrnn_rs.flashrnn(wx, r, b)  # noqa: E731
    measure("rnn, forward", no_grad(forward))
    measure("drop-in, forward", no_grad(dropin))
    measure("rnn, forward+backward", training(lambda: forward()[0], (wx, r, b)), 20)
    measure("drop-in, forward+backward", training(lambda: dropin()[0][0], (wx, r, b)), 20)
    width = SIZES["heads"] * SIZES["dim"]
    for dtype in (torch.bfloat16, torch.float16):
        module = torch.nn.LSTM(width, width, batch_first=True, device="cuda", dtype=dtype)
        x = torch.randn(SIZES["batch"], SIZES["time"], width, device="cuda", dtype=dtype)
        module.flatten_parameters()
        ours = flashrnn_rs.convert(module)
        for name, one in ((f"nn.LSTM({width}) {dtype}", module), ("ours in its place", ours)):
            run = lambda one=one, x=x: one(x)[0]  # noqa: E731
            measure(f"{name}, forward", no_grad(run), 10, 3)
            step = training(run, list(one.parameters()))
            measure(f"{name}, forward+backward", step, 5, 3)


def by_flashrnn(backend):
    """Returns what replaces TiRex's loop over time by FlashRNN."""
    module = flashrnn_peer()

    def slstm_forward(x, states, r, b):
        heads, dim, _ = r.shape
        config = module.FlashRNNConfig(
            backend=backend,
            function="slstm",
            num_heads=heads,
            head_dim=dim,
            batch_size=x.shape[1],
            dtype="bfloat16",
            recurrent_shape="HPGD",
        )
        wx = x.transpose(0, 1).reshape(x.shape[1], x.shape[0], 4, heads, dim)
        r, b = r.view(heads, dim, 4, dim), b.view(4, heads, dim)
        out, last = module.flashrnn(wx, r.contiguous(), b.to(r.dtype), config=config)
        return out[0].flatten(2).transpose(0, 1), last[:, :, 0].flatten(2)

    return slstm_forward


def stack(peer, first_call):
    """Times a forecast of 12 blocks with 4 heads of 64 units, for 32 series of 512 steps."""
    from tirex.models.slstm.block import sLSTMBlock, sLSTMBlockConfig

    torch.manual_seed(0)
    blocks = [sLSTMBlock(sLSTMBlockConfig(256, 4), "torch") for _ in range(1 if first_call else 12)]
    model = torch.nn.Sequential(*blocks).to("cuda", torch.bfloat16)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)

    def use(slstm_forward):
        for block in model:
            block.slstm_layer.slstm_cell._impl_forward_torch = slstm_forward

    x = torch.randn(32, 512, 256, device="cuda", dtype=torch.bfloat16)
    ours, name = flashrnn_rs.xlstm.slstm_forward, "ours"
    use(ours)
    if peer:
        name, want = f"flashrnn {peer}", model(x).float()
        use(by_flashrnn(peer))
        if not first_call:
            difference = (model(x).float() - want).norm() / want.norm()
            report(f"stack, {name}: difference from ours", relative=difference.item())
    forward = lambda: model(x)  # noqa: E731
    measure(f"stack, {name}, forward", no_grad(forward), 10, 5, first_call)
    step = training(forward, list(model.parameters()))
    measure(f"stack, {name}, forward+backward", step, 5, 3, first_call)


def torchrl(peer, first_call):
    """Times a batch of 128 rows and steps, 256 units, 3 % resets."""
    sys.path.append(str(Path(__file__).parents[1] / "examples"))
    from tensordict import TensorDict
    from torchrl.modules import LSTMModule
    from torchrl_lstm import FlashLSTMModule

    batch, inputs, units = 128, 64, 256
    torch.manual_seed(0)
    is_init = torch.rand(batch, batch, 1, device="cuda") < 0.03
    zeros = torch.zeros(batch, batch, 1, units, device="cuda")
    obs = torch.randn(batch, batch, inputs, device="cuda")
    data = TensorDict({"obs": obs, "h": zeros, "c": zeros, "is_init": is_init}, [batch, batch])
    kinds = {"ours": (FlashLSTMModule, "pad")}
    kinds |= {backend: (LSTMModule, backend) for backend in ("pad", "triton", "scan")}
    weights, want = None, None
    for name, (kind, backend) in kinds.items():
        module = kind(
            input_size=inputs,
            hidden_size=units,
            in_keys=["obs", "h", "c"],
            out_keys=["feat", ("next", "h"), ("next", "c")],
            recurrent_backend=backend,
            default_recurrent_mode=True,
            device="cuda",
        )
        weights = weights or module.state_dict()
        module.load_state_dict(weights)
        forward = lambda module=module: module(data.clone())["feat"]  # noqa: E731
        calls = 2 if backend == "scan" else 10
        if backend != "scan":
            want = forward().detach() if want is None else want
            difference = (forward() - want).norm() / want.norm()
            report(f"torchrl, {name}: difference from ours", relative=difference.item())
        measure(f"torchrl, {name}, forward", no_grad(forward), calls, 3)
        step = training(forward, list(module.parameters()))
        measure(f"torchrl, {name}, forward+backward", step, calls, 3)


def host(peer, first_call):
    """Times the first call of a size, and what the host does in later calls."""
    wx, r, b = tensors(**SIZES)
    seconds = {}

    def timed(name, call):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        seconds[name] = time.perf_counter() - start

    with torch.no_grad():
        timed("first call", lambda: flashrnn_rs.rnn(wx, r, b))
        timed("first call with another T", lambda: flashrnn_rs.rnn(wx[:, :1000], r, b))
        with torch.cuda.stream(torch.cuda.Stream()):
            timed("first call on another stream", lambda: flashrnn_rs.rnn(wx, r, b))
        report("ms", **{name: 1000 * value for name, value in seconds.items()})
        short = [wx[:, :1].contiguous(), r, b]
        for name, call in (
            ("rnn", lambda: flashrnn_rs.rnn(*short)),
            ("drop-in", lambda: flashrnn_rs.flashrnn(*short)),
        ):
            measure(f"{name} of one step, forward", call)
    step = training(lambda: flashrnn_rs.rnn(*short)[0], (r, b))
    measure("rnn of one step, forward+backward", step)
    # Without autograd: the two operators, called directly.
    ops, options = torch.ops.flashrnn_rs, Options("lstm")
    wx, r, b = (tensor.detach() for tensor in short)
    forward = lambda: ops.forward(wx, r, b, None, None, None, *options)  # noqa: E731
    measure("forward operator of one step", forward)
    states, _, gates, wide = forward()
    given = r, b, states, gates, wide, None, None, None, None, states[0], None
    backward = lambda: ops.backward(*given, [True, True, False], *options)  # noqa: E731
    measure("backward operator of one step", backward)
    module = torch.nn.LSTM(64, 768, device="cuda", dtype=torch.float16)
    x = torch.randn(1, SIZES["batch"], 64, device="cuda", dtype=torch.float16)
    measure("nn.LSTM of one step, forward", no_grad(lambda: module(x)))
    step = training(lambda: module(x)[0], list(module.parameters()))
    measure("nn.LSTM of one step, forward+backward", step)


if __name__ == "__main__":
    subjects = {"lstm": lstm, "stack": stack, "torchrl": torchrl, "host": host}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("subject", choices=subjects)
    parser.add_argument("--peer", help="a backend of FlashRNN, such as cuda or cuda_fused")
    parser.add_argument("--first-call", action="store_true")
    args = parser.parse_args()
    subjects[args.subject](args.peer, args.first_call)
