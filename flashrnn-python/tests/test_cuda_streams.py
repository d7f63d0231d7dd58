"""Streams, memory and graphs of PyTorch on CUDA."""

import gc
import subprocess
import sys
import textwrap
import threading

import pytest
import torch

from flashrnn_rs import _ops, rnn
from flashrnn_rs._plans import Options, Shapes
from on_cuda import assert_same_bits, needs_cuda, passes, tensors

pytestmark = needs_cuda

SHAPES = [
    (12, 64, torch.bfloat16),  # one kernel for all steps
    (1, 1024, torch.bfloat16),  # one kernel over the whole GPU
    (1, 1024, torch.float32),  # one kernel per step
]
each_shape = pytest.mark.parametrize(("heads", "dim", "dtype"), SHAPES, ids=str)


def layer(heads, dim, dtype, seed=0, time=128):
    """Returns `wx`, `r`, `b` and `s0` of an LSTM."""
    return tensors("lstm", dtype, heads=heads, dim=dim, batch=16, time=time, seed=seed)


def keep_busy():
    """Keeps the current stream busy for some 50 ms."""
    torch.cuda._sleep(100_000_000)


@each_shape
def test_work_runs_on_the_current_stream(heads, dim, dtype):
    given = layer(heads, dim, dtype)
    torch.cuda.synchronize()
    doubled = [(2 * given[0]).detach().requires_grad_(), *given[1:]]
    want = passes(doubled)
    for stream in (torch.cuda.Stream(), torch.cuda.Stream(priority=-1)):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            late = torch.zeros_like(given[0], requires_grad=True)
            for _ in range(2):  # the second time, the plan exists
                keep_busy()
                with torch.no_grad():
                    late.copy_(2 * given[0])
                got = passes([late, *given[1:]])
                with torch.no_grad():
                    late.zero_()  # runs after what has read it
        stream.synchronize()
        assert_same_bits(got, want)


def test_a_stream_of_another_library():
    given = layer(2, 64, torch.float32)
    want = passes(given)
    own = torch.cuda.Stream()
    stream = torch.cuda.ExternalStream(own.cuda_stream)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        keep_busy()
        got = passes(given)
    stream.synchronize()
    assert_same_bits(got, want)


@each_shape
def test_outputs_that_are_freed_at_once(heads, dim, dtype):
    """Memory that is freed is used again at once, by whatever is enqueued next."""
    given = layer(heads, dim, dtype, time=32)
    calls = 1000 if dim == 64 else 100
    sums = torch.zeros(calls, dtype=torch.float64, device="cuda")
    for k in range(calls):
        h, last = rnn(*given)
        sums[k] = h.double().sum() + last.double().sum()
        shapes = h.shape, last.shape
        if k % 10 == 0:
            torch.autograd.grad(h, given[:1], torch.ones_like(h))
        del h, last
        for shape in shapes:
            torch.full(shape, torch.nan, device="cuda")
    assert sums[0].isfinite()
    assert torch.equal(sums, sums[:1].expand(calls))


def test_threads_with_streams_of_their_own():
    given = layer(2, 64, torch.bfloat16)
    want = passes(given)
    torch.cuda.synchronize()
    failed = []

    def work():
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                got = passes(given)
                torch.cuda.current_stream().synchronize()
                if not all(map(torch.equal, got, want)):
                    failed.append(torch.cuda.current_stream())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def peak_of(call):
    """Returns the results of a call, and the bytes that it allocated at most."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = call()
    return results, torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("time_major", [False, True])
def test_no_tensor_with_a_time_axis_is_copied(time_major):
    wx, r, b, _ = layer(12, 64, torch.bfloat16, time=256)
    if time_major:
        wx = wx.detach().transpose(0, 1).contiguous().requires_grad_()
    options = Options("lstm", time_major=time_major)
    shapes = Shapes.of(options, wx.shape)
    plan = _ops.plan_for(shapes.describe(options, "bfloat16", "bfloat16"), wx.device)
    call = lambda: rnn(wx, r, b, time_major=time_major)  # noqa: E731
    d_h = torch.ones(shapes.h, dtype=wx.dtype, device="cuda")
    backward = lambda: torch.autograd.grad(h, (wx, r, b), d_h)  # noqa: E731
    h, _ = call()
    backward()

    own = plan.packed_bytes + (64 << 10)  # and what the allocator rounds up
    with torch.no_grad():
        outputs, peak = peak_of(call)
        assert peak <= sum(t.nbytes for t in outputs) + plan.workspaces[0] + own < wx.nbytes
    (h, last), peak = peak_of(call)
    gates, wide = 4 * h.nbytes, 2 * h.nbytes  # of which nothing is left out
    assert peak <= 2 * h.nbytes + gates + wide + last.nbytes + plan.workspaces[0] + own
    gradients, peak = peak_of(backward)
    assert peak <= sum(t.nbytes for t in gradients) + plan.workspaces[1] + own


class Captured:
    """Both passes of a layer, captured in a graph."""

    def __init__(self, given, warm_up=True):
        self.given = given
        if warm_up:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self.eager()
            torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        self.d_h, self.d_last = self.gradients()
        torch.cuda.synchronize()
        with torch.cuda.graph(self.graph):
            self.outputs = self.eager()

    def gradients(self):
        wx, _, _, s0 = self.given
        d_h = torch.linspace(-1, 1, wx[:, :, 0].numel(), device="cuda").view_as(wx[:, :, 0])
        return d_h.to(wx.dtype), torch.ones_like(s0)

    def eager(self):
        h, last = rnn(*self.given)
        d_h, d_last = (self.d_h, self.d_last) if hasattr(self, "d_h") else self.gradients()
        return [h, last, *torch.autograd.grad([h, last], self.given, [d_h, d_last])]

    def replay(self):
        self.graph.replay()
        return [tensor.clone() for tensor in self.outputs]


@each_shape
def test_a_captured_call_equals_an_eager_one(heads, dim, dtype):
    captured = Captured(layer(heads, dim, dtype))
    for seed in range(3):
        for static, new in zip(captured.given, layer(heads, dim, dtype, seed), strict=True):
            with torch.no_grad():
                static.copy_(new)
        assert_same_bits(captured.replay(), captured.eager())


@each_shape
def test_graphs_and_eager_calls_on_three_streams(heads, dim, dtype):
    layers = [layer(heads, dim, dtype, seed) for seed in range(3)]
    graphs = [Captured(given) for given in layers[:2]]
    calls = [graphs[0].replay, graphs[1].replay, lambda: passes(layers[2])]
    want = [call() for call in calls]
    assert_same_bits(want[0], graphs[0].eager())
    streams = [torch.cuda.Stream() for _ in calls]
    torch.cuda.synchronize()
    got = [[] for _ in calls]
    for _ in range(10):
        for stream, call, results in zip(streams, calls, got, strict=True):
            with torch.cuda.stream(stream):
                results.append(call())
    # The stream on which graphs were captured serves eager calls too.
    with torch.cuda.stream(torch.cuda.graph.default_capture_stream):
        got[2].append(passes(layers[2]))
    torch.cuda.synchronize()
    for results, wanted in zip(got, want, strict=True):
        for result in results:
            assert_same_bits(result, wanted)


@pytest.mark.parametrize(
    ("heads", "dim", "dtype"),
    [(2, 48, torch.bfloat16), (1, 832, torch.bfloat16), (1, 832, torch.float32)],
    ids=str,
)
def test_a_plan_can_be_made_in_a_capture(heads, dim, dtype):
    passes(layer(2, 64, torch.float32))  # opens the device and cuBLAS
    given = layer(heads, dim, dtype)  # of a size that no other test has
    captured = Captured(given, warm_up=False)
    assert_same_bits(captured.replay(), captured.eager())
    assert_same_bits(captured.replay(), captured.eager())


def test_reduce_overhead():
    torch.compiler.reset()
    given = layer(12, 64, torch.bfloat16)

    def call(wx, r, b, s0):
        h, last = rnn(wx * 2, r, b, s0)
        return h.float().square().mean() + last.mean()

    compiled = torch.compile(call, fullgraph=True, mode="reduce-overhead")
    want = torch.autograd.grad(call(*given), given)
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        got = [d.clone() for d in torch.autograd.grad(compiled(*given), given)]
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-2, atol=1e-4)


def test_plans_are_kept_in_a_bounded_cache():
    _, r, b, _ = layer(2, 64, torch.float32)
    wx = torch.zeros(1, 300, 4, 2, 64, device="cuda")
    for time in range(1, 300):
        rnn(wx[:, :time], r, b)
    info = _ops._plan_on_cuda.cache_info()
    assert info.currsize <= info.maxsize == 128


def test_a_process_ends_without_complaint():
    script = """
        import torch
        from flashrnn_rs import LSTM, rnn

        module = LSTM(8, 64, num_layers=2, heads=2).cuda()
        large = LSTM(8, 600).cuda()
        x = torch.randn(40, 3, 8, device="cuda", requires_grad=True)
        for one in (module, large):
            one(x)[0].sum().backward()
        stream = module.stream(batch_size=3)
        stream.step(x[0])
        own = torch.cuda.Stream()
        with torch.cuda.stream(own):
            kept = module(x)
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            captured = module(x)
        graph.replay()
        print("done")
    """
    gc.collect()
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.stdout, ended.returncode) == ("done\n", 0), ended.stderr
    assert "Error" not in ended.stderr
