"""The package as it is installed, with and without PyTorch."""

import doctest
import os
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import flashrnn_rs
import flashrnn_rs.numpy
import reference


def test_types_and_stubs_are_installed():
    folder = Path(flashrnn_rs.__file__).parent
    assert (folder / "py.typed").exists()
    assert (folder / "_native.pyi").exists()


def test_version():
    assert flashrnn_rs.__version__ == version("flashrnn-rs")


def test_names():
    assert "rnn" in dir(flashrnn_rs)
    with pytest.raises(AttributeError, match="no attribute 'rmm'"):
        flashrnn_rs.rmm  # noqa: B018


@pytest.mark.skipif(find_spec("torch") is not None, reason="PyTorch is installed")
def test_what_needs_torch_says_so():
    with pytest.raises(ModuleNotFoundError, match=r"rnn needs PyTorch: pip install"):
        flashrnn_rs.rnn  # noqa: B018


def test_the_examples_of_docstrings():
    assert doctest.testmod(flashrnn_rs.numpy).attempted > 0
    assert doctest.testmod(flashrnn_rs.numpy).failed == 0


def test_calls_from_several_threads():
    wx, r, b, _ = reference.inputs("gru", batch=16, time=50, heads=4, dim=16)

    def call(_):
        out = flashrnn_rs.numpy.forward(wx, r, b, cell="gru", save="gates")
        return [out.h, *out.backward(out.h)]

    want = call(0)
    with ThreadPoolExecutor(4) as threads:
        for got in threads.map(call, range(40)):
            assert all(np.array_equal(*pair) for pair in zip(got, want, strict=True))


@pytest.mark.parametrize("threads", [0, 2])
def test_a_forked_child_computes_the_same(threads):
    wx, r, b, _ = reference.inputs("lstm", batch=16, time=20, heads=4, dim=16)

    def call():
        out = flashrnn_rs.numpy.forward(wx, r, b, save="gates", threads=threads)
        return [out.h, *out.backward(out.h)]

    want = call()
    for _ in range(20):
        child = os.fork()
        if child == 0:
            same = all(np.array_equal(*pair) for pair in zip(call(), want, strict=True))
            os._exit(0 if same else 1)
        _, status = os.waitpid(child, 0)
        assert status == 0
