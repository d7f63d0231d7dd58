"""Times a forecast of TiRex's sLSTM blocks on the CPU: its own compiled path, and this package.

    python benchmarks/tirex_on_cpu.py [--steps 512]

The blocks have random weights. TiRex's path is what `load_model(compile=True, backend="torch")`
sets: its loop over time, compiled by `torch.compile`. Compiling 512 steps takes minutes. Prints the
median times of a forecast and of its recurrences alone, in milliseconds; the two take turns.
"""

import argparse
import statistics
import time

import torch
from tirex.models.slstm.block import sLSTMBlock, sLSTMBlockConfig
from tirex.models.slstm.cell import sLSTMCellTorch

import flashrnn_rs.xlstm


class Timed:
    """A function that adds up how long its calls take."""

    def __init__(self, function):
        self.function, self.seconds = function, 0.0

    def __call__(self, *args):
        start = time.perf_counter()
        result = self.function(*args)
        self.seconds += time.perf_counter() - start
        return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    # 12 blocks, 4 heads of 64 units, 32 series, float32.
    model = torch.nn.Sequential(*(sLSTMBlock(sLSTMBlockConfig(256, 4), "torch") for _ in range(12)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    x = torch.randn(32, args.steps, 256)

    paths = {
        "tirex, compiled": torch.compile(sLSTMCellTorch.slstm_forward),
        "flashrnn_rs": flashrnn_rs.xlstm.slstm_forward,
    }
    times = {name: [] for name in paths}
    alone = {name: [] for name in paths}
    outputs = {}
    with torch.inference_mode():
        for k in range(args.rounds + 1):
            for name, path in paths.items():
                timed = Timed(path)
                for block in model:
                    block.slstm_layer.slstm_cell._impl_forward_torch = timed
                start = time.perf_counter()
                outputs[name] = model(x)
                seconds = time.perf_counter() - start
                if k > 0:
                    times[name].append(1000 * seconds)
                    alone[name].append(1000 * timed.seconds)
                elif name.startswith("tirex"):
                    print(f"compiled and run once in {seconds:.0f} s", flush=True)
    theirs, ours = outputs.values()
    print(f"relative difference {((ours - theirs).norm() / theirs.norm()).item():.1e}")
    for what, figures in (("forecast", times), ("recurrences alone", alone)):
        slow, fast = (statistics.median(each) for each in figures.values())
        for name, each in figures.items():
            median, low, high = statistics.median(each), min(each), max(each)
            print(f"{what}, {name}: {median:.1f} ms, from {low:.1f} to {high:.1f}")
        print(f"{what}: {slow / fast:.1f} times")
