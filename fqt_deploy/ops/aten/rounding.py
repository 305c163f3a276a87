"""Element-wise rounding and remainders."""

from __future__ import annotations

from typing import Any

import torch

from fqt_deploy.ops.aten.aten_op import aten
from fqt_deploy.ops.aten.pointwise import OnnxNodes, pointwise
from fqt_deploy.ops.aten.samples import BYTES, MIXED, POSITIVE, ROW, call
from fqt_deploy.ops.lib.dtypes import dtype_of
from fqt_deploy.ops.lib.late_modules import tirx
from fqt_deploy.ops.lib.onnx_body import OnnxWriter
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Nan, zero_with_any

_HALVES = torch.tensor([-2.5, -1.5, -0.5, -0.2, 0.0, 0.5, 1.5, 2.5, 3.7])
"""Ties and both signs."""


def _truncated(graph: OnnxWriter, dtype: str, x: str) -> str:
    """ONNX has no truncation: the floor of the size, and the sign."""
    return graph("Mul", graph("Floor", graph("Abs", x)), graph("Sign", x))


_ROUNDINGS: tuple[tuple[Any, Any, OnnxNodes], ...] = (
    (aten.floor.default, lambda x: tirx.floor(x), "Floor"),
    (aten.ceil.default, lambda x: tirx.ceil(x), "Ceil"),
    (aten.trunc.default, lambda x: tirx.trunc(x), _truncated),
    (aten.round.default, lambda x: tirx.nearbyint(x), "Round"),
)
for _target, _expression, _onnx in _ROUNDINGS:
    pointwise(
        _target, expression=_expression, onnx=_onnx, flops=1, samples=[call(MIXED), call(_HALVES)],
        zero=zero_with_any("self"), sign=ANY_SIGN, nan=Nan.KEPT,
    )  # fmt: skip


def _fmod(a: Any, b: Any) -> Any:
    """The remainder of a division that is rounded toward zero: the sign of ``a``.

    By the C library's function, which is exact: TVM has no lowering of its own ``fmod`` for LLVM.
    """
    return tirx.call_pure_extern("float32", "fmodf", a, b) if "float" in dtype_of(a) else tirx.truncmod(a, b)


def _remainder(a: Any, b: Any) -> Any:
    """The remainder of a division that is rounded down: the sign of ``b``."""
    if "float" not in dtype_of(a):
        return tirx.floormod(a, b)
    rest = _fmod(a, b)
    opposite = tirx.Or(tirx.And(rest < 0.0, b > 0.0), tirx.And(rest > 0.0, b < 0.0))
    return tirx.Select(opposite, rest + b, rest)


def _fmod_onnx(graph: OnnxWriter, dtype: str, a: str, b: str) -> str:
    return graph("Mod", a, b, fmod=1)


def _remainder_onnx(graph: OnnxWriter, dtype: str, a: str, b: str) -> str:
    if not dtype.startswith("float"):
        return graph("Mod", a, b, fmod=0)
    rest, zero = graph("Mod", a, b, fmod=1), graph.constant(0, dtype)
    differ = graph("Xor", graph("Less", rest, zero), graph("Less", b, zero))
    wrong = graph("And", graph("Not", graph("Equal", rest, zero)), differ)
    return graph("Where", wrong, graph("Add", rest, b), rest)


_REMAINDERS = [call(MIXED, 0.75), call(BYTES, 4), call(-BYTES, 4)]
pointwise(
    aten.fmod.Scalar, expression=_fmod, onnx=_fmod_onnx, flops=8, samples=_REMAINDERS, zero=zero_with_any("self"),
    sign=ANY_SIGN, nan=Nan.KEPT,
)  # fmt: skip
pointwise(
    aten.fmod.Tensor, expression=_fmod, onnx=_fmod_onnx, flops=8, zero=zero_with_any("self"),
    sign=ANY_SIGN, nan=Nan.KEPT,
    samples=[call(MIXED, ROW), call(BYTES, BYTES.flip(1))],
)  # fmt: skip
pointwise(
    aten.remainder.Scalar, expression=_remainder, onnx=_remainder_onnx, flops=10, samples=_REMAINDERS,
    zero=zero_with_any("self"), sign=ANY_SIGN, nan=Nan.KEPT,
)  # fmt: skip
pointwise(
    aten.remainder.Tensor, expression=_remainder, onnx=_remainder_onnx, flops=10, zero=zero_with_any("self"),
    sign=ANY_SIGN, nan=Nan.KEPT,
    samples=[call(MIXED, ROW), call(BYTES, BYTES.flip(1))],
)  # fmt: skip


def _rounded_quotient(a: Any, b: Any, *, rounding_mode: str | None) -> Any:
    if "float" not in dtype_of(a):
        return tirx.floordiv(a, b) if rounding_mode == "floor" else tirx.truncdiv(a, b)
    quotient = a / b
    return {"floor": tirx.floor, "trunc": tirx.trunc, None: lambda x: x}[rounding_mode](quotient)


def _rounded_quotient_onnx(graph: OnnxWriter, dtype: str, a: str, b: str, *, rounding_mode: str | None) -> str:
    if not dtype.startswith("float"):
        if rounding_mode == "trunc":
            return graph("Div", a, b)
        return graph("Div", graph("Sub", a, graph("Mod", a, b, fmod=0)), b)
    quotient = graph("Div", a, b)
    if rounding_mode is None:
        return quotient
    return graph("Floor", quotient) if rounding_mode == "floor" else _truncated(graph, dtype, quotient)


for _overload in ("Tensor_mode", "Scalar_mode"):
    pointwise(
        getattr(aten.div, _overload), expression=_rounded_quotient, onnx=_rounded_quotient_onnx, flops=5,
        zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.KEPT,
        samples=[
            call(MIXED, 0.75, rounding_mode="floor"), call(MIXED, 0.75, rounding_mode="trunc"),
            call(POSITIVE, 2.0, rounding_mode=None), call(BYTES, 4, rounding_mode="floor"),
            call(-BYTES, 4, rounding_mode="floor"), call(-BYTES, 4, rounding_mode="trunc"),
        ] if _overload == "Scalar_mode" else [
            call(MIXED, ROW, rounding_mode="floor"), call(MIXED, ROW, rounding_mode="trunc"),
            call(-BYTES, BYTES.flip(1), rounding_mode="floor"), call(POSITIVE, ROW, rounding_mode=None),
        ],
    )  # fmt: skip
