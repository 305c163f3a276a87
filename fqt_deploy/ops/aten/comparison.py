"""Element-wise comparisons and logic."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

from fqt_deploy.ops.aten.aten_op import aten
from fqt_deploy.ops.aten.pointwise import OnnxNodes, by_type, pointwise
from fqt_deploy.ops.aten.samples import BYTES, MASK, MIXED, ROW, WIDE, call
from fqt_deploy.ops.lib.boolean import comparable
from fqt_deploy.ops.lib.dtypes import dtype_of
from fqt_deploy.ops.lib.float32 import is_nan, opaque
from fqt_deploy.ops.lib.late_modules import tirx
from fqt_deploy.ops.lib.onnx_body import OnnxWriter, element_type
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Nan, zero_with_all, zero_with_any

_TENSORS = [call(MIXED, ROW), call(BYTES, BYTES.flip(1)), call(MASK, ~MASK), call(WIDE[0] > 0, WIDE[1] > 0)]
_NUMBERS = [call(MIXED, 0.5), call(BYTES, 10)]
_MASKS = [call(MASK, ~MASK)]
_BITS = [*_MASKS, call(BYTES, BYTES.flip(1))]


def _equal(a: Any, b: Any) -> Any:
    return tirx.EQ(comparable(a), comparable(b))


def _unequal(a: Any, b: Any) -> Any:
    """NaN differs from everything: TVM's own inequality is false of it."""
    return tirx.Not(opaque(_equal(a, b))) if dtype_of(a) == "float32" else tirx.NE(comparable(a), comparable(b))


def _not_equal(graph: OnnxWriter, _: str, a: str, b: str) -> str:
    return graph("Not", graph("Equal", a, b))


def _compared(compare: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda a, b: compare(comparable(a), comparable(b))


def _ordered(name: str) -> OnnxNodes:
    """Nodes of a comparison that ONNX has for numbers alone."""

    def write(graph: OnnxWriter, dtype: str, *operands: str) -> str:
        if dtype == "bool":
            operands = tuple(graph("Cast", operand, to=element_type("int32")) for operand in operands)
        return graph(name, *operands)

    return write


_COMPARISONS: tuple[tuple[str, Any, OnnxNodes], ...] = (
    ("lt", _compared(operator.lt), _ordered("Less")),
    ("le", _compared(operator.le), _ordered("LessOrEqual")),
    ("gt", _compared(operator.gt), _ordered("Greater")),
    ("ge", _compared(operator.ge), _ordered("GreaterOrEqual")),
    ("eq", _equal, "Equal"),
    ("ne", _unequal, _not_equal),
)
for _name, _expression, _onnx in _COMPARISONS:
    for _overload, _samples in (("Tensor", _TENSORS), ("Scalar", _NUMBERS)):
        pointwise(
            getattr(getattr(aten, _name), _overload), expression=_expression, onnx=_onnx, flops=1, samples=_samples,
            compares=True, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN,
        )  # fmt: skip


def _and(a: Any, b: Any) -> Any:
    return tirx.And(a, b) if dtype_of(a) == "bool" else a & b


def _or(a: Any, b: Any) -> Any:
    return tirx.Or(a, b) if dtype_of(a) == "bool" else a | b


def _xor(a: Any, b: Any) -> Any:
    return tirx.NE(comparable(a), comparable(b)) if dtype_of(a) == "bool" else a ^ b


def _not(a: Any) -> Any:
    return tirx.Not(a) if dtype_of(a) == "bool" else ~a


pointwise(
    aten.bitwise_and.Tensor, expression=_and, onnx=by_type("And", "BitwiseAnd"), flops=1, samples=_BITS,
    zero=zero_with_any("self", "other"), sign=ANY_SIGN, nan=Nan.UNKNOWN,
)  # fmt: skip
pointwise(
    aten.bitwise_or.Tensor, expression=_or, onnx=by_type("Or", "BitwiseOr"), flops=1, samples=_BITS,
    zero=zero_with_all("self", "other"), sign=ANY_SIGN, nan=Nan.UNKNOWN,
)  # fmt: skip
pointwise(
    aten.logical_and.default, expression=_and, onnx="And", flops=1, samples=_MASKS, zero=zero_with_any("self", "other"),
    sign=ANY_SIGN, nan=Nan.UNKNOWN,
)  # fmt: skip
pointwise(
    aten.logical_or.default, expression=_or, onnx="Or", flops=1, samples=_MASKS, zero=zero_with_all("self", "other"),
    sign=ANY_SIGN, nan=Nan.UNKNOWN,
)  # fmt: skip
pointwise(
    aten.bitwise_xor.Tensor, expression=_xor, onnx=by_type("Xor", "BitwiseXor"), flops=1, samples=_BITS,
    zero=zero_with_all("self", "other"), sign=ANY_SIGN, nan=Nan.UNKNOWN,
)  # fmt: skip
pointwise(
    aten.logical_xor.default, expression=_xor, onnx="Xor", flops=1, samples=_MASKS, zero=zero_with_all("self", "other"),
    sign=ANY_SIGN, nan=Nan.UNKNOWN,
)  # fmt: skip
pointwise(
    aten.logical_not.default, expression=_not, onnx="Not", flops=1, samples=[call(MASK)], zero=NEVER_ZERO,
    sign=ANY_SIGN, nan=Nan.UNKNOWN,
)  # fmt: skip
pointwise(
    aten.bitwise_not.default, expression=_not, onnx=by_type("Not", "BitwiseNot"), flops=1, zero=NEVER_ZERO,
    sign=ANY_SIGN, nan=Nan.UNKNOWN,
    samples=[call(MASK), call(BYTES)],
)  # fmt: skip
pointwise(
    aten.isnan.default, expression=is_nan, onnx="IsNaN", flops=1, compares=True, zero=NEVER_ZERO,
    sign=ANY_SIGN, nan=Nan.UNKNOWN,
    samples=[call(MIXED), call(torch.tensor([0.0, float("nan"), float("inf")]))],
)  # fmt: skip
