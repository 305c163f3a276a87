"""Channels that 8 divides but 16 does not: vectors of eight lie in one row, and sums stay in registers."""

import numpy as np
import pytest
import torch
import tvm
from tvm import te, tirx

from fqt_deploy.ops.op import FQT_OPS
from fqt_deploy.targets.cpu.packing.pack_channels import MOVE_MASK, has_move_mask
from fqt_deploy.targets.registry import make_target
from tests.targets.op_kernel import op_function


def scaled(shape):
    """``max(x * scale + shift, 0)`` with a scale and a shift for each channel."""
    x = te.placeholder(shape, "float32", name="x")
    scale, shift = (te.placeholder(shape[-1:], "float32", name=name) for name in ("scale", "shift"))
    zero = tirx.const(0.0, "float32")
    y = te.compute(shape, lambda *i: te.max(x[i] * scale[i[-1]] + shift[i[-1]], zero), name="y")
    attributes = {"fqt.op": "relu", "fqt.outputs": 1, "global_symbol": "main", "tirx.noalias": True}
    return te.create_prim_func([x, scale, shift, y]).with_attrs(attributes)


def compiled(function):
    """The scheduled function, and its kernel."""
    target = make_target("cpu")
    scheduled = target.schedule(function)
    return scheduled, tvm.compile(tvm.IRModule({"main": scheduled}), target.tvm_target)["main"]


@pytest.mark.parametrize(("channels", "lanes"), [(72, 8), (88, 8), (24, 8), (48, 16), (20, 16)])
def test_an_element_wise_kernel(channels, lanes):
    shape = (2, 4, 6, channels)
    scheduled, kernel = compiled(scaled(shape))
    assert f"T.vectorized({lanes})" in scheduled.script()
    r = np.random.default_rng(0)
    x, scale, shift = (r.standard_normal(s, dtype=np.float32) for s in (shape, (channels,), (channels,)))
    result = tvm.runtime.empty(shape, "float32")
    kernel(*map(tvm.runtime.tensor, (x, scale, shift)), result)
    np.testing.assert_allclose(result.numpy(), np.maximum(x * scale + shift, 0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("channels", [72, 88, 104, 120])
def test_sums_over_positions(channels):
    x = torch.randn(5, 7, 6, channels, generator=torch.Generator().manual_seed(0))
    scheduled, kernel = compiled(op_function("channel_moments", (x,)))
    assert "T.vectorized(8)" in scheduled.script()
    found = [tvm.runtime.empty((channels,), "float32") for _ in range(2)]
    kernel(tvm.runtime.tensor(x.numpy()), *found)
    for ours, right in zip(found, FQT_OPS["channel_moments"](x).reference(), strict=True):
        np.testing.assert_allclose(ours.numpy(), right.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "channels"), [("quantize_pack_samples", 72), ("pack_signs", 88), ("pack_levels", 240)]
)
def test_packing_of_words_that_whole_vectors_fill_in_part(name, channels):
    r = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, channels, generator=r)
    low, per_unit = torch.full((3,), -4.0), torch.full((3,), 15 / 8)
    key = torch.tensor([5, 7], dtype=torch.int32)
    arguments = {
        "quantize_pack_samples": (x, None, None, low, per_unit, key, 4),
        "pack_signs": (x,),
        "pack_levels": (x, 0.37, 4, True),
    }[name]
    scheduled, kernel = compiled(op_function(name, arguments))
    assert (MOVE_MASK in scheduled.script()) == has_move_mask(make_target("cpu").features)
    expected = FQT_OPS[name](*arguments).reference()
    result = tvm.runtime.empty(tuple(expected.shape), "int32")
    kernel(*(tvm.runtime.tensor(a.numpy()) for a in arguments if isinstance(a, torch.Tensor)), result)
    np.testing.assert_array_equal(result.numpy(), expected.numpy())
