"""What the tests on CUDA share."""

import pytest
import torch

import reference
from flashrnn_rs import rnn

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

MAX_ERRORS = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Relative errors beside float64. Those of 16 bits are some roundings of h and of the results."""


def tensors(cell, dtype=torch.float32, weight_dtype=None, **sizes):
    """Returns `wx`, `r`, `b` and `s0` on CUDA, which require gradients."""
    arrays = reference.inputs(cell, **{"time": 9, "dim": 64, **sizes})
    weight_dtype = weight_dtype or dtype
    dtypes = (dtype, weight_dtype, weight_dtype, torch.float32)
    given = [torch.tensor(array).to(kind) for array, kind in zip(arrays, dtypes, strict=True)]
    return [tensor.cuda().requires_grad_() for tensor in given]


def random_like(tensor, seed):
    """Returns random numbers, the same on every device and of every dtype but for rounding."""
    numbers = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed))
    return numbers.to(torch.bfloat16).to(tensor)


def passes(given, call=rnn, **options):
    """Returns h, the last states and the gradients of everything that is given."""
    h, last = call(*given, **options)
    gradients = [random_like(h, 1), random_like(last, 2)]
    return [h, last, *torch.autograd.grad([h, last], given, gradients)]


def in_f64(given):
    """Returns the same tensors, in float64 on the CPU."""
    return [tensor.detach().cpu().double().requires_grad_() for tensor in given]


def to_cpu(options):
    return {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in options.items()}


def assert_close(got, want, tolerance, what=""):
    """Compares each tensor with its counterpart, by the norm of the error."""
    names = ("h", "last", "d_wx", "d_r", "d_b", "d_s0")
    for name, one, other in zip(names, got, want, strict=False):
        one, other = one.detach().double().cpu(), other.detach().double().cpu()
        error = ((one - other).norm() / other.norm().clamp_min(1e-30)).item()
        assert error < tolerance, f"{what} {name}: relative error {error:.2e}"


def assert_same_bits(got, want):
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)
