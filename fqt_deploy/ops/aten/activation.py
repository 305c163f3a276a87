"""Element-wise activations that PyTorch does not spell in simpler ops, and their gradients."""

from __future__ import annotations

import math
from typing import Any

from fqt_deploy.ops.aten.aten_op import aten
from fqt_deploy.ops.aten.pointwise import pointwise, zero_like
from fqt_deploy.ops.aten.samples import MIXED, POSITIVE, call
from fqt_deploy.ops.aten.transcendental import erf, tanh
from fqt_deploy.ops.lib.float32 import clamped
from fqt_deploy.ops.lib.onnx_body import OnnxWriter
from fqt_deploy.ops.lib.rational import GELU_SLOPE
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_NEGATIVE, Nan, zero_with_any

_SCALE, _CUBE = math.sqrt(2.0 / math.pi), 0.044715
"""Of GELU with ``approximate="tanh"``."""


def _gelu(x: Any, *, approximate: str) -> Any:
    if approximate == "tanh":
        return x * (tanh(_tanh_argument(x)) + 1.0) * 0.5
    return x * (erf(x * math.sqrt(0.5)) + 1.0) * 0.5


def _gelu_backward(g: Any, x: Any, *, approximate: str) -> Any:
    """``g`` times the derivative of GELU."""
    if approximate == "tanh":
        t = tanh(_tanh_argument(x))
        slope = (x * x * (3.0 * _CUBE) + 1.0) * _SCALE
        return g * ((t + 1.0) * 0.5 + x * 0.5 * (1.0 - t * t) * slope)
    return g * (GELU_SLOPE(x) + 0.5)


def _tanh_argument(x: Any) -> Any:
    return (x + x * x * x * _CUBE) * _SCALE


def _gelu_onnx(graph: OnnxWriter, _: str, x: str, *, approximate: str) -> str:
    return graph("Gelu", x, approximate=approximate)


def _gelu_backward_onnx(graph: OnnxWriter, dtype: str, g: str, x: str, *, approximate: str) -> str:
    """``g`` times the derivative of GELU."""

    def number(value: float) -> str:
        return graph.constant(value, dtype)

    half, one = number(0.5), number(1.0)
    square = graph("Mul", x, x)
    if approximate == "tanh":
        growth = graph("Mul", graph("Add", graph("Mul", square, number(_CUBE)), one), number(_SCALE))
        value = graph("Tanh", graph("Mul", x, growth))
        slope = graph("Mul", graph("Add", graph("Mul", square, number(3.0 * _CUBE)), one), number(_SCALE))
        density = graph("Mul", graph("Sub", one, graph("Mul", value, value)), graph("Mul", slope, half))
    else:
        value = graph("Erf", graph("Mul", x, number(math.sqrt(0.5))))
        density = graph("Mul", graph("Exp", graph("Mul", square, number(-0.5))), number(math.sqrt(0.5 / math.pi)))
    distribution = graph("Mul", graph("Add", value, one), half)
    return graph("Mul", g, graph("Add", distribution, graph("Mul", x, density)))


pointwise(
    aten.relu.default, expression=lambda x: clamped(x, zero_like(x)), onnx="Relu", flops=1, samples=[call(MIXED)],
    zero=zero_with_any("self"), sign=NEVER_NEGATIVE.as_positive_as("self"), nan=Nan.KEPT,
)  # fmt: skip
pointwise(
    aten.gelu.default, expression=_gelu, onnx=_gelu_onnx, flops=32, zero=zero_with_any("self"),
    sign=ANY_SIGN.as_positive_as("self"), nan=Nan.KEPT,
    samples=[call(MIXED), call(MIXED, approximate="tanh")],
)  # fmt: skip
pointwise(
    aten.gelu_backward.default, expression=_gelu_backward, onnx=_gelu_backward_onnx, flops=40,
    zero=zero_with_any("grad_output"), sign=ANY_SIGN, nan=Nan.KEPT,
    samples=[call(POSITIVE, MIXED), call(POSITIVE, MIXED, approximate="tanh")],
)  # fmt: skip
