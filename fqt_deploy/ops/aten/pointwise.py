"""ATen ops that compute each output element from the same element of their (broadcast) operands."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops.lib.exponential import decay, exponential
from fqt_deploy.ops.lib.expression_dtype import dtype_of

aten = torch.ops.aten
prims = torch.ops.prims


@dataclass(frozen=True)
class Pointwise:
    """One element-wise ATen op.

    Attributes:
        expression: scalar expressions of the operands -> scalar expression of the result.
        work: rough cost of one element in floating point operations.
        compares: operands are promoted among themselves, the result is boolean.
    """

    expression: Callable[..., Any]
    work: int = 1
    compares: bool = False


_GELU_SCALE, _GELU_CUBE = math.sqrt(2.0 / math.pi), 0.044715
"""Of GELU with ``approximate="tanh"``."""


def _power(x: Any, exponent: Any) -> Any:
    constant = getattr(exponent, "value", None)
    if constant == 2:
        return x * x
    if constant == 3:
        return x * x * x
    if constant == 0.5:
        return tirx.sqrt(x)
    return tirx.power(x, exponent)


def _tanh(x: Any) -> Any:
    """``(1 - e) / (1 + e)`` with ``e = exp(-2 |x|)``, and the sign of ``x``; absolute error below 2e-7."""
    e = decay(tirx.abs(x) * -2.0)
    y = (1.0 - e) / (1.0 + e)
    return tirx.Select(x >= 0.0, y, -y)


def _erf(x: Any) -> Any:
    return _erf_and_decay(x)[0]


def _erf_and_decay(x: Any) -> tuple[Any, Any]:
    """Error function by Abramowitz and Stegun 7.1.26, absolute error below 1.5e-7, and the ``exp(-x^2)`` it needs."""
    a = tirx.abs(x)
    t = 1.0 / (1.0 + 0.3275911 * a)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    e = decay(-(a * a))
    y = 1.0 - series * e
    return tirx.Select(x >= 0.0, y, -y), e


def _comparable(x: Any) -> Any:
    """LLVM's code generator compares booleans as if they were floats."""
    return x.astype("int8") if dtype_of(x) == "bool" else x


def _log1p(x: Any) -> Any:
    """Logarithm of ``1 + x`` without the error that rounding the sum makes (Kahan): small ``x`` keep their digits."""
    u = 1.0 + x
    return tirx.Select(u.equal(1.0), x, tirx.log(u) * (x / (u - 1.0)))


def _expm1(x: Any) -> Any:
    """``exp(x) - 1``; by its series near 0, where the difference would cancel."""
    series = x * (1.0 + x * (1 / 2 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120 + x * (1 / 720))))))
    return tirx.Select(tirx.abs(x) < 0.5, series, exponential(x) - 1.0)


def _gelu(x: Any, approximate: Any = "none") -> Any:
    if approximate == "tanh":
        return x * (_tanh(_tanh_argument(x)) + 1.0) * 0.5
    return x * (_erf(x * math.sqrt(0.5)) + 1.0) * 0.5


def _gelu_backward(g: Any, x: Any, approximate: Any = "none") -> Any:
    """``g`` times the derivative of GELU: one exponential serves the distribution and its density."""
    if approximate == "tanh":
        t = _tanh(_tanh_argument(x))
        slope = (x * x * (3.0 * _GELU_CUBE) + 1.0) * _GELU_SCALE
        return g * ((t + 1.0) * 0.5 + x * 0.5 * (1.0 - t * t) * slope)
    erf, e = _erf_and_decay(x * math.sqrt(0.5))
    return g * ((erf + 1.0) * 0.5 + x * e * math.sqrt(0.5 / math.pi))


def _tanh_argument(x: Any) -> Any:
    return (x + x * x * x * _GELU_CUBE) * _GELU_SCALE


def _clamp(x: Any, low: Any = None, high: Any = None) -> Any:
    x = x if low is None else tirx.max(x, low)
    return x if high is None else tirx.min(x, high)


def _zero(x: Any) -> Any:
    return tirx.const(0, dtype_of(x))


_ADD = Pointwise(lambda a, b: a + b)
_SUB = Pointwise(lambda a, b: a - b)
_MUL = Pointwise(lambda a, b: a * b)
_DIV = Pointwise(lambda a, b: a / b, work=4)
_LT = Pointwise(lambda a, b: a < b, compares=True)
_LE = Pointwise(lambda a, b: a <= b, compares=True)
_GT = Pointwise(lambda a, b: a > b, compares=True)
_GE = Pointwise(lambda a, b: a >= b, compares=True)
_EQ = Pointwise(lambda a, b: tirx.EQ(_comparable(a), _comparable(b)), compares=True)
_NE = Pointwise(lambda a, b: tirx.NE(_comparable(a), _comparable(b)), compares=True)
_AND = Pointwise(lambda a, b: tirx.And(a, b) if dtype_of(a) == "bool" else a & b)
_OR = Pointwise(lambda a, b: tirx.Or(a, b) if dtype_of(a) == "bool" else a | b)
_NOT = Pointwise(lambda a: tirx.Not(a) if dtype_of(a) == "bool" else ~a)

POINTWISE: dict[Any, Pointwise] = {
    aten.add.Tensor: _ADD, aten.add.Scalar: _ADD,
    aten.sub.Tensor: _SUB, aten.sub.Scalar: _SUB,
    aten.mul.Tensor: _MUL, aten.mul.Scalar: _MUL,
    aten.div.Tensor: _DIV, aten.div.Scalar: _DIV, prims.div.default: _DIV,
    aten.lt.Tensor: _LT, aten.lt.Scalar: _LT, aten.le.Tensor: _LE, aten.le.Scalar: _LE,
    aten.gt.Tensor: _GT, aten.gt.Scalar: _GT, aten.ge.Tensor: _GE, aten.ge.Scalar: _GE,
    aten.eq.Tensor: _EQ, aten.eq.Scalar: _EQ, aten.ne.Tensor: _NE, aten.ne.Scalar: _NE,
    aten.bitwise_and.Tensor: _AND, aten.logical_and.default: _AND,
    aten.bitwise_or.Tensor: _OR, aten.logical_or.default: _OR,
    aten.logical_not.default: _NOT, aten.bitwise_not.default: _NOT,
    aten.maximum.default: Pointwise(tirx.max), aten.minimum.default: Pointwise(tirx.min),
    aten.where.self: Pointwise(tirx.Select),
    aten.relu.default: Pointwise(lambda x: tirx.max(x, _zero(x))),
    aten.neg.default: Pointwise(lambda x: _zero(x) - x),
    aten.abs.default: Pointwise(tirx.abs),
    aten.sign.default: Pointwise(lambda x: tirx.Select(x > 0.0, 1.0, tirx.Select(x < 0.0, -1.0, 0.0)), work=2),
    aten.exp.default: Pointwise(exponential, work=12),
    aten.log.default: Pointwise(tirx.log, work=16),
    aten.log1p.default: Pointwise(_log1p, work=24),
    aten.expm1.default: Pointwise(_expm1, work=20),
    aten.isnan.default: Pointwise(tirx.isnan, compares=True),
    aten.sqrt.default: Pointwise(tirx.sqrt, work=6),
    aten.rsqrt.default: Pointwise(lambda x: 1.0 / tirx.sqrt(x), work=10),
    aten.reciprocal.default: Pointwise(lambda x: 1.0 / x, work=4),
    aten.tanh.default: Pointwise(_tanh, work=20),
    aten.sigmoid.default: Pointwise(lambda x: 1.0 / (1.0 + exponential(_zero(x) - x)), work=16),
    aten.erf.default: Pointwise(_erf, work=28),
    aten.gelu.default: Pointwise(_gelu, work=32), aten.gelu_backward.default: Pointwise(_gelu_backward, work=40),
    aten.pow.Tensor_Scalar: Pointwise(_power, work=2),
    aten.pow.Tensor_Tensor: Pointwise(_power, work=24),
    aten.pow.Scalar: Pointwise(_power, work=24),
    aten.clamp.default: Pointwise(_clamp), aten.clamp_min.default: Pointwise(_clamp),
    aten.clamp_max.default: Pointwise(lambda x, high: tirx.min(x, high)),
    aten._to_copy.default: Pointwise(lambda x: x), aten.clone.default: Pointwise(lambda x: x),
}  # fmt: skip
"""Every supported element-wise ATen overload."""

_SCALAR_ATTRIBUTES = {aten.gelu.default: "approximate", aten.gelu_backward.default: "approximate"}


def compute(target: Any, result: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> te.Tensor:
    """TE stage of one element-wise ATen op.

    Args:
        target: the overload, a key of ``POINTWISE``.
        result: fake tensor with the result's shape and dtype.
        args: operands: ``te.Tensor`` (broadcast as in PyTorch), Python numbers, or None.
        kwargs: keyword arguments of the call; only ``approximate`` of GELU and its derivative matters.
        name: stage name.
    """
    op = POINTWISE[target]
    shape = [int(d) for d in result.shape]
    dtype = tvm_dtype(result.dtype)
    operand_dtype = _promoted(args) if op.compares else dtype
    extra = {k: v for k, v in kwargs.items() if k == _SCALAR_ATTRIBUTES.get(target)}

    def element(*index: Any) -> Any:
        operands = [_operand(a, index, operand_dtype) for a in args]
        if target is aten.where.self:
            operands[0] = read_broadcast(args[0], index)
        return op.expression(*operands, **extra)

    return te.compute(shape, lambda *i: _cast(element(*i), dtype), name=name)


def tvm_dtype(dtype: torch.dtype) -> str:
    """TVM's name of a PyTorch dtype."""
    return str(dtype).removeprefix("torch.")


def read_broadcast(tensor: te.Tensor, index: tuple[Any, ...]) -> Any:
    """``tensor`` at the position that output ``index`` broadcasts from."""
    rank = len(tensor.shape)
    aligned = index[len(index) - rank :]
    return tensor[tuple(0 if int(d) == 1 else i for d, i in zip(tensor.shape, aligned, strict=True))]


def _operand(value: Any, index: tuple[Any, ...], dtype: str) -> Any:
    if value is None:
        return None
    if isinstance(value, te.Tensor):
        return _cast(read_broadcast(value, index), dtype)
    return tirx.const(value, dtype)


def _cast(expression: Any, dtype: str) -> Any:
    return expression if dtype_of(expression) == dtype else expression.astype(dtype)


def _promoted(args: tuple[Any, ...]) -> str:
    """Common dtype of comparison operands: a floating operand, Python numbers included, makes it float32."""
    floating = any(isinstance(a, float) or (isinstance(a, te.Tensor) and "float" in str(a.dtype)) for a in args)
    if floating:
        return "float32"
    return next(str(a.dtype) for a in args if isinstance(a, te.Tensor))
