"""Element-wise ATen ops in ONNX: the table beside ``ops/aten/pointwise.py``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from fqt_deploy.export.graph_writer import GraphWriter, Operand, dtype_name
from fqt_deploy.ops.aten.pointwise import POINTWISE

aten = torch.ops.aten
prims = torch.ops.prims

Writer = Callable[..., str]


def _bitwise(boolean: str, integer: str) -> Writer:
    def write(graph: GraphWriter, dtype: str, *operands: str) -> str:
        return graph(boolean if dtype == "bool" else integer, *operands)

    return write


def _rsqrt(graph: GraphWriter, _: str, x: str) -> str:
    return graph("Reciprocal", graph("Sqrt", x))


def _gelu(graph: GraphWriter, _: str, x: str, approximate: str = "none") -> str:
    return graph("Gelu", x, approximate=approximate)


def _gelu_backward(graph: GraphWriter, dtype: str, g: str, x: str, approximate: str = "none") -> str:
    """``g`` times the derivative of GELU."""

    def number(value: float) -> str:
        return graph.constant(value, dtype)

    half, one = number(0.5), number(1.0)
    square = graph("Mul", x, x)
    if approximate == "tanh":
        scale, cube = math.sqrt(2.0 / math.pi), 0.044715
        growth = graph("Mul", graph("Add", graph("Mul", square, number(cube)), one), number(scale))
        value = graph("Tanh", graph("Mul", x, growth))
        slope = graph("Mul", graph("Add", graph("Mul", square, number(3.0 * cube)), one), number(scale))
        density = graph("Mul", graph("Sub", one, graph("Mul", value, value)), graph("Mul", slope, half))
    else:
        value = graph("Erf", graph("Mul", x, number(math.sqrt(0.5))))
        density = graph("Mul", graph("Exp", graph("Mul", square, number(-0.5))), number(math.sqrt(0.5 / math.pi)))
    distribution = graph("Mul", graph("Add", value, one), half)
    return graph("Mul", g, graph("Add", distribution, graph("Mul", x, density)))


def _clamp(graph: GraphWriter, _: str, x: str, low: str | None = None, high: str | None = None) -> str:
    x = x if low is None else graph("Max", x, low)
    return x if high is None else graph("Min", x, high)


def _not_equal(graph: GraphWriter, _: str, a: str, b: str) -> str:
    return graph("Not", graph("Equal", a, b))


def _log1p(graph: GraphWriter, dtype: str, x: str) -> str:
    one = graph.constant(1.0, dtype)
    u = graph("Add", one, x)
    ratio = graph("Div", x, graph("Sub", u, one))
    return graph("Where", graph("Equal", u, one), x, graph("Mul", graph("Log", u), ratio))


def _expm1(graph: GraphWriter, dtype: str, x: str) -> str:
    series = graph.constant(1 / 720, dtype)
    for coefficient in (1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0):
        series = graph("Add", graph.constant(coefficient, dtype), graph("Mul", x, series))
    near = graph("Less", graph("Abs", x), graph.constant(0.5, dtype))
    away = graph("Sub", graph("Exp", x), graph.constant(1.0, dtype))
    return graph("Where", near, graph("Mul", x, series), away)


def _plain(graph: GraphWriter, _: str, x: str) -> str:
    return x


ONNX_POINTWISE: dict[Any, str | Writer] = {
    aten.add.Tensor: "Add", aten.add.Scalar: "Add",
    aten.sub.Tensor: "Sub", aten.sub.Scalar: "Sub",
    aten.mul.Tensor: "Mul", aten.mul.Scalar: "Mul",
    aten.div.Tensor: "Div", aten.div.Scalar: "Div", prims.div.default: "Div",
    aten.lt.Tensor: "Less", aten.lt.Scalar: "Less", aten.le.Tensor: "LessOrEqual", aten.le.Scalar: "LessOrEqual",
    aten.gt.Tensor: "Greater", aten.gt.Scalar: "Greater",
    aten.ge.Tensor: "GreaterOrEqual", aten.ge.Scalar: "GreaterOrEqual",
    aten.eq.Tensor: "Equal", aten.eq.Scalar: "Equal", aten.ne.Tensor: _not_equal, aten.ne.Scalar: _not_equal,
    aten.bitwise_and.Tensor: _bitwise("And", "BitwiseAnd"), aten.logical_and.default: "And",
    aten.bitwise_or.Tensor: _bitwise("Or", "BitwiseOr"), aten.logical_or.default: "Or",
    aten.logical_not.default: "Not", aten.bitwise_not.default: _bitwise("Not", "BitwiseNot"),
    aten.maximum.default: "Max", aten.minimum.default: "Min",
    aten.where.self: "Where",
    aten.relu.default: "Relu", aten.neg.default: "Neg", aten.abs.default: "Abs", aten.sign.default: "Sign",
    aten.exp.default: "Exp", aten.log.default: "Log", aten.sqrt.default: "Sqrt", aten.rsqrt.default: _rsqrt,
    aten.reciprocal.default: "Reciprocal", aten.tanh.default: "Tanh", aten.sigmoid.default: "Sigmoid",
    aten.log1p.default: _log1p, aten.expm1.default: _expm1, aten.isnan.default: "IsNaN",
    aten.erf.default: "Erf", aten.gelu.default: _gelu, aten.gelu_backward.default: _gelu_backward,
    aten.pow.Tensor_Scalar: "Pow", aten.pow.Tensor_Tensor: "Pow", aten.pow.Scalar: "Pow",
    aten.clamp.default: _clamp, aten.clamp_min.default: _clamp, aten.clamp_max.default: "Min",
    aten._to_copy.default: _plain, aten.clone.default: _plain,
}  # fmt: skip
"""ONNX's op, or what writes the nodes, for every key of ``POINTWISE``."""

_KEYWORDS = {aten.gelu.default: "approximate", aten.gelu_backward.default: "approximate"}


def write_pointwise(
    graph: GraphWriter, target: Any, result: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str:
    """Write one call of ``target``; operands are cast as in PyTorch.

    Args:
        graph: receives the nodes.
        target: a key of ``ONNX_POINTWISE``.
        result: shape and dtype of the result.
        args: ``Operand``, Python numbers or None.
        kwargs: of the call.
    """
    dtype = _compared(args) if POINTWISE[target].compares else dtype_name(result.dtype)
    names = [_operand(graph, argument, dtype) for argument in args]
    if target is aten.where.self:
        names[0] = args[0].name
    extra = {name: value for name, value in kwargs.items() if name == _KEYWORDS.get(target)}
    written = ONNX_POINTWISE[target]
    if isinstance(written, str):
        return graph(written, *[name for name in names if name is not None], **extra)
    return written(graph, dtype, *names, **extra)


def _operand(graph: GraphWriter, argument: Any, dtype: str) -> str | None:
    if argument is None:
        return None
    return graph.cast(argument, dtype) if isinstance(argument, Operand) else graph.constant(argument, dtype)


def _compared(args: tuple[Any, ...]) -> str:
    """Common type of operands that are compared: a float among them, Python numbers included, makes it float32."""
    if any(isinstance(a, float) or (isinstance(a, Operand) and a.dtype.startswith("float")) for a in args):
        return "float32"
    return next(a.dtype for a in args if isinstance(a, Operand))
