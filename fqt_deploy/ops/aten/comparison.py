"""Element-wise comparisons and logic."""

from __future__ import annotations

from typing import Any

import torch
from tvm import tirx

from fqt_deploy.ops.aten.aten_op import aten
from fqt_deploy.ops.aten.pointwise import OnnxNodes, pointwise
from fqt_deploy.ops.aten.samples import BYTES, MASK, MIXED, ROW, WIDE, call
from fqt_deploy.ops.lib.dtypes import dtype_of
from fqt_deploy.ops.lib.float32 import is_nan, opaque
from fqt_deploy.ops.lib.onnx_body import OnnxWriter
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Nan, zero_with_all, zero_with_any

_TENSORS = [call(MIXED, ROW), call(BYTES, BYTES.flip(1)), call(MASK, ~MASK), call(WIDE[0] > 0, WIDE[1] > 0)]
_NUMBERS = [call(MIXED, 0.5), call(BYTES, 10)]
_MASKS = [call(MASK, ~MASK)]
_BITS = [*_MASKS, call(BYTES, BYTES.flip(1))]


def _comparable(x: Any) -> Any:
    """LLVM's code generator compares booleans as if they were floats."""
    return x.astype("int8") if dtype_of(x) == "bool" else x


def _equal(a: Any, b: Any) -> Any:
    return tirx.EQ(_comparable(a), _comparable(b))


def _unequal(a: Any, b: Any) -> Any:
    """NaN differs from everything: TVM's own inequality is false of it."""
    return tirx.Not(opaque(_equal(a, b))) if dtype_of(a) == "float32" else tirx.NE(_comparable(a), _comparable(b))


def _not_equal(graph: OnnxWriter, _: str, a: str, b: str) -> str:
    return graph("Not", graph("Equal", a, b))


def _by_type(boolean: str, integer: str) -> OnnxNodes:
    def write(graph: OnnxWriter, dtype: str, *operands: str) -> str:
        return graph(boolean if dtype == "bool" else integer, *operands)

    return write


_COMPARISONS: tuple[tuple[str, Any, OnnxNodes], ...] = (
    ("lt", lambda a, b: a < b, "Less"),
    ("le", lambda a, b: a <= b, "LessOrEqual"),
    ("gt", lambda a, b: a > b, "Greater"),
    ("ge", lambda a, b: a >= b, "GreaterOrEqual"),
    ("eq", _equal, "Equal"),
    ("ne", _unequal, _not_equal),
)
for _name, _expression, _onnx in _COMPARISONS:
    _equality = _name in ("eq", "ne")
    for _overload, _samples in (("Tensor", _TENSORS if _equality else _TENSORS[:2]), ("Scalar", _NUMBERS)):
        pointwise(
            getattr(getattr(aten, _name), _overload), expression=_expression, onnx=_onnx, flops=1, samples=_samples,
            compares=True, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN,
        )  # fmt: skip


def _and(a: Any, b: Any) -> Any:
    return tirx.And(a, b) if dtype_of(a) == "bool" else a & b


def _or(a: Any, b: Any) -> Any:
    return tirx.Or(a, b) if dtype_of(a) == "bool" else a | b


def _xor(a: Any, b: Any) -> Any:
    return tirx.NE(_comparable(a), _comparable(b)) if dtype_of(a) == "bool" else a ^ b


def _not(a: Any) -> Any:
    return tirx.Not(a) if dtype_of(a) == "bool" else ~a


pointwise(
    aten.bitwise_and.Tensor, expression=_and, onnx=_by_type("And", "BitwiseAnd"), flops=1, samples=_BITS,
    zero=zero_with_any("self", "other"), sign=ANY_SIGN, nan=Nan.UNKNOWN,
)  # fmt: skip
pointwise(
    aten.bitwise_or.Tensor, expression=_or, onnx=_by_type("Or", "BitwiseOr"), flops=1, samples=_BITS,
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
    aten.bitwise_xor.Tensor, expression=_xor, onnx=_by_type("Xor", "BitwiseXor"), flops=1, samples=_BITS,
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
    aten.bitwise_not.default, expression=_not, onnx=_by_type("Not", "BitwiseNot"), flops=1, zero=NEVER_ZERO,
    sign=ANY_SIGN, nan=Nan.UNKNOWN,
    samples=[call(MASK), call(BYTES)],
)  # fmt: skip
pointwise(
    aten.isnan.default, expression=is_nan, onnx="IsNaN", flops=1, compares=True, zero=NEVER_ZERO,
    sign=ANY_SIGN, nan=Nan.UNKNOWN,
    samples=[call(MIXED), call(torch.tensor([0.0, float("nan"), float("inf")]))],
)  # fmt: skip
