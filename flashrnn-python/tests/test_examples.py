"""The examples, and those of the README, one after the other."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1]


def test_readme():
    blocks = re.findall(r"```python\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
    assert len(blocks) >= 5
    # In a process of its own, because it replaces functions of other packages.
    subprocess.run([sys.executable, "-c", "\n".join(blocks)], check=True)


def test_a_script_for_flashrnn(capsys):
    runpy.run_path(str(FOLDER / "examples" / "flashrnn_script.py"))
    last = float(capsys.readouterr().out.split()[-1])
    assert last < 0.01


def test_an_lstm_module_of_torchrl(capsys):
    runpy.run_path(str(FOLDER / "examples" / "torchrl_lstm.py"), run_name="__main__")
    assert "gradients are TorchRL's" in capsys.readouterr().out


def test_two_processes_have_the_gradients_of_the_whole_batch():
    script = FOLDER / "benchmarks" / "data_parallel.py"
    command = [sys.executable, script, "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "gradients of 2 processes are those of the whole batch" in done.stdout
