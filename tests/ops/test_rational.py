"""Odd functions as quotients of polynomials: error bounds against double precision, signs, and what lies beyond."""

import math

import numpy as np
import pytest
import torch

from fqt_deploy.ops.lib.rational import ERF, GELU_SLOPE, OddRational, within
from fqt_deploy.ops.op import OPS
from tests.ops.test_exponential import evaluate

VALUES = np.linspace(-12, 12, (1 << 18) + 1).astype("float32")


def slope(x):
    """The derivative of GELU less 1/2, in double precision."""
    density = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return torch.erf(x / math.sqrt(2)) / 2 + x * density


@pytest.mark.parametrize(("function", "exact", "bound"), [(ERF, torch.erf, 5e-7), (GELU_SLOPE, slope, 4e-7)])
def test_error(function, exact, bound):
    expected = exact(torch.from_numpy(VALUES).double()).numpy()
    assert np.max(np.abs(evaluate(function, VALUES) - expected)) < bound


@pytest.mark.parametrize(("function", "exact", "bound"), [(ERF, torch.erf, 6e-7), (GELU_SLOPE, slope, 1.5e-6)])
def test_small_numbers_keep_their_digits(function, exact, bound):
    values = np.geomspace(1e-30, 1.0, 6000).astype("float32")
    expected = exact(torch.from_numpy(values).double()).numpy()
    assert np.max(np.abs(evaluate(function, values) - expected) / expected) < bound


def test_odd():
    np.testing.assert_array_equal(evaluate(ERF, -VALUES), -evaluate(ERF, VALUES))


@pytest.mark.parametrize("function", [ERF, GELU_SLOPE], ids=["erf", "slope"])
def test_bounds(function):
    values = np.array([np.inf, 100.0, -100.0, -np.inf, np.nan], "float32")
    edge = evaluate(function, np.array([function.bound], "float32"))[0]
    np.testing.assert_array_equal(evaluate(function, values), np.array([edge, edge, -edge, -edge, np.nan], "float32"))


def test_erf_never_leaves_its_range():
    """Else GELU would be positive far below 0, which ``simplify-signs`` rules out."""
    values = np.arange(np.float32(2).view("int32"), np.float32(5).view("int32"), 7, dtype="int32").view("float32")
    found = evaluate(OPS[torch.ops.aten.erf.default].expression, values)
    assert found.max() == 1.0
    assert evaluate(ERF, values).max() > 1.0


def test_gelu_has_the_sign_of_its_operand():
    expression = OPS[torch.ops.aten.gelu.default].expression
    negative = -np.geomspace(1e-20, 1e6, 20000).astype("float32")
    assert evaluate(lambda x: expression(x, approximate="none"), negative).max() <= 0.0


def test_within_keeps_nan():
    values = np.array([-3.0, -1.0, 0.5, 7.0, np.nan], "float32")
    np.testing.assert_array_equal(
        evaluate(lambda x: within(x, 1.0), values), np.array([-1.0, -1.0, 0.5, 1.0, np.nan], "float32")
    )


def test_coefficients_of_the_lowest_powers_come_first():
    cubic = OddRational(10.0, (2.0, 1.0), (4.0,))
    x = np.array([1.0, 2.0, -3.0], "float32")
    np.testing.assert_allclose(evaluate(cubic, x), (2 * x + x**3) / 4)
