import numpy as np
import pytest

import reference
from flashrnn_rs.numpy import forward

LENGTHS = np.array([7, 0, 4])
RESETS = np.zeros((3, 7), bool)
RESETS[0, 3] = RESETS[2, 0] = RESETS[2, 3] = RESETS[1, 2] = True
OPTIONS = [
    {},
    {"lengths": LENGTHS},
    {"resets": RESETS},
    {"lengths": LENGTHS, "resets": RESETS, "reverse": True},
    {"forward_clip": 0.2},
]
CELLS = list(reference.CELLS)


def reference_of(wx, r, b, s0, cell, options):
    options = dict(options)
    clip = options.pop("forward_clip", np.inf)
    return reference.run(wx, r, b, s0, cell, clip=clip, **options)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_the_forward_pass_agrees_with_the_loop(cell, options):
    wx, r, b, s0 = reference.inputs(cell)
    for start in (None, s0):
        states, last = reference_of(wx, r, b, start, cell, options)
        out = forward(wx, r, b, start, cell, save="gates", **options)
        np.testing.assert_allclose(out.states, states, atol=1e-13)
        np.testing.assert_allclose(out.last, last, atol=1e-13)
        inference = forward(wx, r, b, start, cell, **options)
        assert inference.states is None
        np.testing.assert_array_equal(inference.h, out.h)
        np.testing.assert_array_equal(inference.last, out.last)


@pytest.mark.parametrize("cell", CELLS)
def test_time_major_arrays_hold_the_same_numbers(cell):
    wx, r, b, s0 = reference.inputs(cell)
    want = forward(wx, r, b, s0, cell, resets=RESETS, save="gates")
    swapped = np.swapaxes(wx, 0, 1)  # not contiguous
    got = forward(swapped, r, b, s0, cell, resets=RESETS.T, time_major=True, save="gates")
    np.testing.assert_array_equal(np.swapaxes(got.states, 1, 2), want.states)
    np.testing.assert_array_equal(got.last, want.last)


@pytest.mark.parametrize("save", ["gates", "recompute"])
@pytest.mark.parametrize("options", OPTIONS[:4], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_agree_with_differences(cell, options, save):
    wx, r, b, s0 = reference.inputs(cell)
    random = np.random.default_rng(1)
    d_h = random.normal(size=(3, 7, 2, 5))
    # The states of sLSTM beyond h hold their stabiliser constant, so the loss is on h alone.
    d_last = np.zeros_like(s0)
    d_last[0] = random.normal(size=s0.shape[1:])

    def loss(tensors):
        states, last = reference_of(*tensors, cell, options)
        return (states[0] * d_h).sum() + (last * d_last).sum()

    out = forward(wx, r, b, s0, cell, save=save, **options)
    gradients = out.backward(d_h, d_last=d_last)
    tensors = [wx, r, b, s0]
    for k, gradient in enumerate(gradients):
        direction = random.normal(size=tensors[k].shape)
        if cell == "slstm" and k == 3:
            direction[3] = 0  # m is held constant
        moved = [
            [*tensors[:k], tensors[k] + e * direction, *tensors[k + 1 :]] for e in (1e-6, -1e-6)
        ]
        slope = (loss(moved[0]) - loss(moved[1])) / 2e-6
        assert (gradient * direction).sum() == pytest.approx(slope, rel=1e-6, abs=1e-7), k


def test_gradients_of_states_include_those_of_h():
    wx, r, b, s0 = reference.inputs("gru")
    out = forward(wx, r, b, s0, "gru", save="gates")
    d_h = np.random.default_rng(2).normal(size=out.h.shape)
    for one, other in zip(out.backward(d_h), out.backward(d_states=d_h[None]), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("dtype", "weight_dtype"), [("f4", "f4"), ("f2", "f2"), ("f2", "f4")])
def test_dtypes(dtype, weight_dtype):
    wx, r, b, s0 = reference.inputs("slstm")
    wx, r, b = wx.astype(dtype), r.astype(weight_dtype), b.astype(weight_dtype)
    states, last = reference.run(wx.astype("f8"), r.astype("f8"), b.astype("f8"), s0, "slstm")
    out = forward(wx, r, b, s0, "slstm", save="gates")
    assert (out.h.dtype, out.last.dtype) == (np.dtype(dtype), np.dtype("f4"))
    tolerance = 1e-5 if dtype == "f4" else 1e-2
    np.testing.assert_allclose(out.states, states, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(out.last, last, rtol=tolerance, atol=tolerance)
    gradients = out.backward(np.ones_like(out.h))
    dtypes = [np.dtype(t) for t in (dtype, weight_dtype, weight_dtype, "f4")]
    assert [gradient.dtype for gradient in gradients] == dtypes


def test_foreign_byte_order_is_converted():
    wx, r, b, _ = reference.inputs("lstm")
    got = forward(wx.astype(">f8"), r.astype(">f8"), b.astype(">f8"))
    np.testing.assert_array_equal(got.h, forward(wx, r, b).h)


def test_buffers_that_are_not_aligned():
    given = reference.inputs("lstm")[:3]
    shifted = [np.frombuffer(b"x" + array.tobytes(), "f8", offset=1) for array in given]
    assert not any(array.flags.aligned for array in shifted)
    shifted = [array.reshape(g.shape) for array, g in zip(shifted, given, strict=True)]
    np.testing.assert_array_equal(forward(*shifted).h, forward(*given).h)


def test_threads_do_not_change_the_results():
    wx, r, b, _ = reference.inputs("lstm", batch=16, time=20, heads=4, dim=16)
    want = forward(wx, r, b, threads=1).h
    np.testing.assert_array_equal(forward(wx, r, b, threads=3).h, want)


@pytest.mark.parametrize(("batch", "time"), [(0, 7), (3, 0), (0, 0)])
def test_empty_arrays_have_empty_results(batch, time):
    wx = np.zeros((batch, time, 4, 2, 5), np.float32)
    r, b = np.zeros((4, 2, 5, 5), np.float32), np.zeros((4, 2, 5), np.float32)
    out = forward(wx, r, b, save="gates")
    assert out.h.shape == (batch, time, 2, 5)
    assert not out.last.any()
    assert not out.backward(out.h).d_r.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wx": np.zeros((3, 7, 3, 2, 5))}, r"wx: got shape \[3, 7, 3, 2, 5\], wanted \[B, T, 4"),
        ({"r": np.zeros((4, 2, 5, 4))}, r"r: got shape \[4, 2, 5, 4\], wanted \[4, 2, 5, 5\]"),
        ({"r": np.zeros((4, 2, 5, 5), "f4")}, "dtype of r and b: got float32"),
        ({"wx": np.zeros((3, 7, 4, 2, 5), "i4")}, "dtype: got int32, wanted float16"),
        ({"s0": np.zeros((2, 3, 2))}, "s0: got shape"),
        ({"lengths": [7, 8, 0]}, r"lengths\[1\] is 8, wanted 0 to 7"),
        ({"lengths": [7, -1, 0]}, r"lengths\[1\] is -1"),
        ({"lengths": [7, 2**32, 0]}, r"lengths\[1\] is 2147483647"),
        ({"resets": np.zeros((7, 3))}, "resets: got shape"),
        ({"cell": "lstn"}, "cell: got lstn, wanted one of elman, elman_relu, gru"),
        ({"save": "all"}, "save: got all, wanted gates or recompute"),
        ({"forward_clip": -1.0}, "forward_clip: got -1, wanted a number above 0"),
        ({"threads": 5000}, "threads: got 5000"),
    ],
)
def test_bad_input_is_refused_in_words(change, message):
    wx, r, b, s0 = reference.inputs("lstm")
    with pytest.raises(ValueError, match=message):
        forward(**{"wx": wx, "r": r, "b": b, "s0": s0, "cell": "lstm", **change})


def test_lengths_that_are_no_integers_are_refused():
    wx, r, b, _ = reference.inputs("lstm")
    with pytest.raises(TypeError, match="float64"):
        forward(wx, r, b, lengths=[1.5, 2, 3])


def test_a_backward_pass_needs_save():
    wx, r, b, _ = reference.inputs("lstm")
    out = forward(wx, r, b)
    with pytest.raises(ValueError, match="save: got None, wanted gates or recompute"):
        out.backward(out.h)
