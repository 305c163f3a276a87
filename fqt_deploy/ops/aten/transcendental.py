"""Element-wise roots, powers, exponentials and logarithms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fqt_deploy.core.call import Call
from fqt_deploy.ops.aten.aten_op import aten
from fqt_deploy.ops.aten.pointwise import pointwise, zero_like
from fqt_deploy.ops.aten.samples import MIXED, POSITIVE, ROW, SMALL, call
from fqt_deploy.ops.lib.exponential import decay, exponential
from fqt_deploy.ops.lib.float32 import opaque
from fqt_deploy.ops.lib.late_modules import tirx
from fqt_deploy.ops.lib.onnx_body import OnnxWriter
from fqt_deploy.ops.lib.rational import ERF, within
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_NEGATIVE, NEVER_ZERO, Nan, Sign, zero_with_any

_ANY, _ABOVE_ZERO = [call(MIXED)], [call(POSITIVE)]


def _power(x: Any, exponent: Any) -> Any:
    constant = getattr(exponent, "value", None)
    if constant == 2:
        return x * x
    if constant == 3:
        return x * x * x
    if constant == 0.5:
        return tirx.sqrt(x)
    return tirx.power(x, exponent)


def tanh(x: Any) -> Any:
    """``(1 - e) / (1 + e)`` with ``e = exp(-2 |x|)``, and the sign of ``x``; absolute error below 2e-7."""
    e = decay(tirx.abs(x) * -2.0)
    y = (1.0 - e) / (1.0 + e)
    return tirx.Select(x >= 0.0, y, -y)


def erf(x: Any) -> Any:
    """The error function; absolute and relative error below 5e-7, never beyond 1."""
    return within(ERF(x), 1.0)


_HUGE = 1e9
"""Far beyond what adding 1 changes."""
_EXPM1 = (1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720, 1 / 5040, 1 / 40320)
"""Coefficients of ``(exp(x) - 1) / x - 1`` from ``x`` on: for ``|x| < 0.5`` the next is below the last digit."""


def _log1p(x: Any) -> Any:
    """Logarithm of ``1 + x`` without the error that rounding the sum makes (Kahan): small ``x`` keep their digits."""
    u = opaque(1.0 + x)
    ratio = tirx.Select(x > _HUGE, tirx.const(1.0, "float32"), x / (u - 1.0))
    return tirx.Select(u.equal(1.0), x, tirx.log(u) * ratio)


def _log1p_onnx(graph: OnnxWriter, dtype: str, x: str) -> str:
    one = graph.constant(1.0, dtype)
    u = graph("Add", one, x)
    ratio = graph("Div", x, graph("Sub", u, one))
    ratio = graph("Where", graph("Greater", x, graph.constant(_HUGE, dtype)), one, ratio)
    return graph("Where", graph("Equal", u, one), x, graph("Mul", graph("Log", u), ratio))


def _expm1(x: Any) -> Any:
    """``exp(x) - 1``; by its series near 0, where the difference would cancel."""
    series: Any = tirx.const(_EXPM1[-1], "float32")
    for coefficient in _EXPM1[-2::-1]:
        series = coefficient + x * series
    return tirx.Select(tirx.abs(x) < 0.5, x + x * (x * series), exponential(x) - 1.0)


def _expm1_onnx(graph: OnnxWriter, dtype: str, x: str) -> str:
    series = graph.constant(_EXPM1[-1], dtype)
    for coefficient in _EXPM1[-2::-1]:
        series = graph("Add", graph.constant(coefficient, dtype), graph("Mul", x, series))
    near = graph("Less", graph("Abs", x), graph.constant(0.5, dtype))
    away = graph("Sub", graph("Exp", x), graph.constant(1.0, dtype))
    return graph("Where", near, graph("Add", x, graph("Mul", x, graph("Mul", x, series))), away)


def _rsqrt_onnx(graph: OnnxWriter, _: str, x: str) -> str:
    return graph("Reciprocal", graph("Sqrt", x))


def _even_power(call: Call, _not_negative: Callable[[Any], bool]) -> bool:
    return float(call.exponent) % 2 == 0


pointwise(
    aten.exp.default, expression=exponential, onnx="Exp", flops=12, samples=_ANY, zero=NEVER_ZERO,
    sign=NEVER_NEGATIVE, nan=Nan.KEPT,
)  # fmt: skip
pointwise(
    aten.log.default, expression=lambda x: tirx.log(x), onnx="Log", flops=16, samples=_ABOVE_ZERO, zero=NEVER_ZERO,
    sign=ANY_SIGN, nan=Nan.KEPT,
)  # fmt: skip
pointwise(
    aten.log1p.default, expression=_log1p, onnx=_log1p_onnx, flops=24, zero=zero_with_any("self"),
    sign=ANY_SIGN, nan=Nan.KEPT,
    samples=[call(POSITIVE), call(SMALL.abs())],
)  # fmt: skip
pointwise(
    aten.expm1.default, expression=_expm1, onnx=_expm1_onnx, flops=20, zero=zero_with_any("self"),
    sign=ANY_SIGN, nan=Nan.KEPT,
    samples=[call(MIXED), call(SMALL)],
)  # fmt: skip
pointwise(
    aten.sqrt.default, expression=lambda x: tirx.sqrt(x), onnx="Sqrt", flops=6, samples=_ABOVE_ZERO,
    zero=zero_with_any("self"), sign=NEVER_NEGATIVE, nan=Nan.KEPT,
)  # fmt: skip
pointwise(
    aten.rsqrt.default, expression=lambda x: 1.0 / tirx.sqrt(x), onnx=_rsqrt_onnx, flops=10, samples=_ABOVE_ZERO,
    zero=NEVER_ZERO, sign=NEVER_NEGATIVE, nan=Nan.KEPT,
)  # fmt: skip
pointwise(
    aten.tanh.default, expression=tanh, onnx="Tanh", flops=20, samples=_ANY, zero=zero_with_any("self"),
    sign=ANY_SIGN, nan=Nan.KEPT,
)  # fmt: skip
pointwise(
    aten.sigmoid.default, expression=lambda x: 1.0 / (1.0 + exponential(zero_like(x) - x)), onnx="Sigmoid", flops=16,
    samples=_ANY, zero=NEVER_ZERO, sign=NEVER_NEGATIVE, nan=Nan.KEPT,
)  # fmt: skip
pointwise(
    aten.erf.default, expression=erf, onnx="Erf", flops=26, samples=_ANY, zero=NEVER_ZERO,
    sign=ANY_SIGN, nan=Nan.KEPT,
)  # fmt: skip
pointwise(
    aten.pow.Tensor_Scalar, expression=_power, onnx="Pow", flops=2, zero=NEVER_ZERO,
    sign=Sign(_even_power), nan=Nan.KEPT,
    samples=[call(POSITIVE, 2), call(POSITIVE, 3), call(POSITIVE, 0.5), call(POSITIVE, -1.5)],
)  # fmt: skip
pointwise(
    aten.pow.Tensor_Tensor, expression=_power, onnx="Pow", flops=24, samples=[call(POSITIVE, ROW)], zero=NEVER_ZERO,
    sign=ANY_SIGN, nan=Nan.UNKNOWN,
)  # fmt: skip
pointwise(
    aten.pow.Scalar, expression=_power, onnx="Pow", flops=24, samples=[call(2.0, MIXED)], zero=NEVER_ZERO,
    sign=ANY_SIGN, nan=Nan.UNKNOWN,
)  # fmt: skip
