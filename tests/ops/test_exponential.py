"""The exponential on the values of every binade, at its bounds, and what is made of it."""

from functools import partial

import numpy as np
import pytest
import torch
import tvm
from tvm import te, tirx

import fqt_deploy.ops.registry  # noqa: F401
from fqt_deploy.ops.lib.exponential import HIGHEST, LOWEST, LOWEST_PRECISE, decay, exponential
from fqt_deploy.ops.op import OPS
from fqt_deploy.targets.registry import make_target


def evaluate(expression, values):
    x = te.placeholder(values.shape, "float32", name="x")
    y = te.compute(values.shape, lambda i: expression(x[i]), name="y")
    target = make_target("cpu")
    attributes = {"fqt.op": "exp", "fqt.outputs": 1, "global_symbol": "main"}
    function = target.schedule(te.create_prim_func([x, y]).with_attrs(attributes))
    result = tvm.runtime.empty(values.shape, "float32")
    tvm.compile(tvm.IRModule({"main": function}), target.tvm_target)["main"](tvm.runtime.tensor(values), result)
    return result.numpy()


def test_relative_error():
    values = np.linspace(-87.3, 88.7, 1 << 18).astype("float32")
    expected = np.exp(values.astype("float64"))
    assert np.max(np.abs(evaluate(exponential, values) - expected) / expected) < 2e-7


def test_bounds():
    values = np.array([np.inf, HIGHEST, LOWEST, -np.inf, 0.0, -0.0, np.nan], "float32")
    np.testing.assert_array_equal(
        evaluate(exponential, values), np.array([np.inf, np.inf, 0, 0, 1, 1, np.nan], "float32")
    )


@pytest.mark.parametrize(("op", "bound"), [("tanh", 2e-7), ("erf", 5e-7), ("sigmoid", 2e-7), ("gelu", 1.5e-6)])
def test_what_is_made_of_it(op, bound):
    values = np.linspace(-12, 12, 1 << 16).astype("float32")
    function = torch.nn.functional.gelu if op == "gelu" else getattr(torch, op)
    expected = function(torch.from_numpy(values).double()).numpy()
    definition = OPS[getattr(torch.ops.aten, op).default]
    attributes = {"approximate": "none"} if op == "gelu" else {}
    expression = partial(definition.expression, **attributes)
    assert np.max(np.abs(evaluate(expression, values) - expected)) < bound


def test_decay():
    values = np.linspace(LOWEST_PRECISE, 0, 1 << 18).astype("float32")
    expected = np.exp(values.astype("float64"))
    assert np.max(np.abs(evaluate(decay, values) - expected) / expected) < 2e-7
    np.testing.assert_array_less(evaluate(decay, np.array([-np.inf, -1e30, -88.0], "float32")), 2e-38)
    assert np.isnan(evaluate(decay, np.array([np.nan], "float32"))).all()


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_backward(approximate):
    values = np.linspace(-12, 12, 1 << 16).astype("float32")
    x = torch.from_numpy(values).double()
    expected = torch.ops.aten.gelu_backward(torch.full_like(x, 1.5), x, approximate=approximate).numpy()
    backward = OPS[torch.ops.aten.gelu_backward.default].expression
    found = evaluate(lambda v: backward(tirx.const(1.5, "float32"), v, approximate=approximate), values)
    assert np.max(np.abs(found - expected)) < (1e-6 if approximate == "none" else 3e-6)


@pytest.mark.parametrize(("op", "bound"), [("log1p", 3e-7), ("expm1", 4e-7)])
def test_small_numbers_keep_their_digits(op, bound):
    """What makes these functions of their own: relative, not absolute, error near 0."""
    values = np.geomspace(1e-30, 80.0, 6000).astype(np.float32)
    values = np.concatenate([values, -values[values < 0.9]])
    expected = getattr(np, op)(values.astype(np.float64))
    found = evaluate(OPS[getattr(torch.ops.aten, op).default].expression, values)
    assert np.max(np.abs(found - expected) / np.abs(expected)) < bound
