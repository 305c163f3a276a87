"""Element-wise arithmetic, selection and casts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fqt_deploy.core.call import Call
from fqt_deploy.ops.aten.aten_op import aten, prims
from fqt_deploy.ops.aten.pointwise import by_type, pointwise, zero_like
from fqt_deploy.ops.aten.samples import BYTES, MASK, MIXED, POSITIVE, ROW, call
from fqt_deploy.ops.lib.boolean import larger, product, smaller, total
from fqt_deploy.ops.lib.dtypes import dtype_of
from fqt_deploy.ops.lib.float32 import clamped
from fqt_deploy.ops.lib.late_modules import tirx
from fqt_deploy.ops.lib.onnx_body import OnnxWriter
from fqt_deploy.ops.traits import (
    ANY_SIGN,
    NEVER_NEGATIVE,
    NEVER_ZERO,
    Nan,
    Sign,
    keeps_sign,
    zero_with_all,
    zero_with_any,
)

_TENSORS = [call(POSITIVE, ROW), call(POSITIVE, 2.0), call(POSITIVE, BYTES)]
_NUMBER = [call(POSITIVE, 3)]
_MASKS = [call(MASK, ~MASK), call(MASK, MASK.flip(0))]
_SCALED = [call(POSITIVE, ROW, alpha=0.25), call(POSITIVE, BYTES, alpha=-2)]


def _scaled(b: Any, alpha: Any) -> Any:
    """``alpha * b``, which PyTorch computes in the type of the result."""
    return b if alpha == 1 else b * tirx.const(alpha, dtype_of(b))


def _scaled_onnx(graph: OnnxWriter, dtype: str, b: str, alpha: Any) -> str:
    return b if alpha == 1 else graph("Mul", b, graph.constant(alpha, dtype))


def _add(a: Any, b: Any, *, alpha: Any) -> Any:
    return total(a, _scaled(b, alpha))


def _sub(a: Any, b: Any, *, alpha: Any) -> Any:
    return a - _scaled(b, alpha)


def _neg(x: Any) -> Any:
    """Of 0 it is -0."""
    return x * tirx.const(-1.0, "float32") if dtype_of(x) == "float32" else zero_like(x) - x


def _sign_onnx(graph: OnnxWriter, dtype: str, x: str) -> str:
    """PyTorch's sign of NaN is 0, ONNX's is NaN."""
    if dtype == "float32":
        x = graph("Where", graph("IsNaN", x), graph.constant(0.0, dtype), x)
    return graph("Sign", x)


def _add_onnx(graph: OnnxWriter, dtype: str, a: str, b: str, *, alpha: Any) -> str:
    return graph("Or" if dtype == "bool" else "Add", a, _scaled_onnx(graph, dtype, b, alpha))


def _sub_onnx(graph: OnnxWriter, dtype: str, a: str, b: str, *, alpha: Any) -> str:
    return graph("Sub", a, _scaled_onnx(graph, dtype, b, alpha))


def _square_or_not_negative(call: Call, not_negative: Callable[[Any], bool]) -> bool:
    return call.self is call.other or (not_negative(call.self) and not_negative(call.other))


def _clamped_from_zero(call: Call, not_negative: Callable[[Any], bool]) -> bool:
    """The upper bound wins where it is below the lower one."""
    return call.min is not None and not_negative(call.min) and (call.max is None or not_negative(call.max))


for _overload, _samples in (("Tensor", [*_TENSORS, *_SCALED]), ("Scalar", [*_NUMBER, call(POSITIVE, 3, 0.5)])):
    pointwise(
        getattr(aten.add, _overload), expression=_add, onnx=_add_onnx, flops=1,
        samples=[*_samples, *_MASKS] if _overload == "Tensor" else _samples,
        zero=zero_with_all("self", "other"), sign=keeps_sign("self", "other", "alpha"), nan=Nan.KEPT,
    )  # fmt: skip
    pointwise(
        getattr(aten.sub, _overload), expression=_sub, onnx=_sub_onnx, flops=1, samples=_samples,
        zero=zero_with_all("self", "other"), sign=ANY_SIGN, nan=Nan.KEPT,
    )  # fmt: skip

pointwise(
    aten.mul.Tensor, expression=product, onnx=by_type("And", "Mul"), flops=1, samples=[*_TENSORS, *_MASKS],
    zero=zero_with_any("self", "other"), sign=Sign(_square_or_not_negative), nan=Nan.KEPT,
)  # fmt: skip
pointwise(
    aten.mul.Scalar, expression=product, onnx=by_type("And", "Mul"), flops=1, samples=_NUMBER,
    zero=zero_with_any("self"), sign=ANY_SIGN, nan=Nan.KEPT,
)  # fmt: skip
pointwise(
    aten.div.Tensor, expression=lambda a, b: a / b, onnx="Div", flops=4, samples=_TENSORS, zero=zero_with_any("self"),
    sign=keeps_sign("self", "other"), nan=Nan.KEPT,
)  # fmt: skip
pointwise(
    aten.div.Scalar, expression=lambda a, b: a / b, onnx="Div", flops=4, samples=_NUMBER, zero=zero_with_any("self"),
    sign=ANY_SIGN, nan=Nan.KEPT,
)  # fmt: skip
pointwise(
    prims.div.default, expression=lambda a, b: a / b, onnx="Div", flops=4, zero=zero_with_any("self"),
    sign=ANY_SIGN, nan=Nan.KEPT,
    samples=[call(POSITIVE, POSITIVE + 1)],
)  # fmt: skip
pointwise(
    aten.neg.default, expression=_neg, onnx="Neg", flops=1, samples=[call(MIXED), call(BYTES)],
    zero=zero_with_any("self"), sign=ANY_SIGN, nan=Nan.KEPT,
)  # fmt: skip
pointwise(
    aten.abs.default, expression=lambda x: tirx.abs(x), onnx="Abs", flops=1, samples=[call(MIXED)],
    zero=zero_with_any("self"), sign=NEVER_NEGATIVE, nan=Nan.KEPT,
)  # fmt: skip
pointwise(
    aten.sign.default, onnx=_sign_onnx, flops=2, samples=[call(MIXED)], zero=zero_with_any("self"),
    sign=ANY_SIGN, nan=Nan.UNKNOWN,
    expression=lambda x: tirx.Select(x > 0.0, 1.0, tirx.Select(x < 0.0, -1.0, 0.0)),
)  # fmt: skip
pointwise(
    aten.reciprocal.default, expression=lambda x: 1.0 / x, flops=4, samples=[call(POSITIVE)], zero=NEVER_ZERO,
    sign=ANY_SIGN, nan=Nan.KEPT,
    onnx="Reciprocal",
)  # fmt: skip
pointwise(
    aten.maximum.default, expression=larger, onnx=by_type("Or", "Max"), flops=1,
    samples=[call(MIXED, ROW.expand(2, 3)), *_MASKS],
    zero=zero_with_all("self", "other"), sign=keeps_sign("self", "other"), nan=Nan.KEPT,
)  # fmt: skip
pointwise(
    aten.minimum.default, expression=smaller, onnx=by_type("And", "Min"), flops=1,
    samples=[call(MIXED, ROW.expand(2, 3)), *_MASKS],
    zero=zero_with_all("self", "other"), sign=keeps_sign("self", "other"), nan=Nan.KEPT,
)  # fmt: skip
pointwise(
    aten.where.self, expression=lambda c, x, y: tirx.Select(c, x, y), onnx="Where", flops=1,
    samples=[call(MASK, MIXED, ROW)], keeps=(0,),
    zero=zero_with_all("self", "other"), sign=keeps_sign("self", "other"), nan=Nan.UNKNOWN,
)  # fmt: skip


def _clamp_onnx(graph: OnnxWriter, _: str, x: str, low: str | None, high: str | None) -> str:
    x = x if low is None else graph("Max", x, low)
    return x if high is None else graph("Min", x, high)


pointwise(
    aten.clamp.default, expression=clamped, onnx=_clamp_onnx, flops=1, zero=NEVER_ZERO,
    sign=Sign(_clamped_from_zero), nan=Nan.KEPT,
    samples=[call(MIXED, -0.5, 1.0), call(MIXED, None, 1.0), call(MIXED, 0.0), call(MIXED, 1.0, -0.5)],
)  # fmt: skip
pointwise(
    aten.clamp_min.default, expression=lambda x, low: clamped(x, low), onnx="Max", flops=1, zero=NEVER_ZERO,
    sign=keeps_sign("min"), nan=Nan.KEPT,
    samples=[call(MIXED, 0.25)],
)  # fmt: skip
pointwise(
    aten.clamp_max.default, expression=lambda x, high: clamped(x, high=high), onnx="Min", flops=1, zero=NEVER_ZERO,
    sign=ANY_SIGN, nan=Nan.KEPT,
    samples=[call(MIXED, 0.25)],
)  # fmt: skip
pointwise(
    aten._to_copy.default, expression=lambda x: x, onnx=lambda graph, dtype, x: x, flops=1,
    samples=[call(BYTES, dtype=torch.float32), call(MASK, dtype=torch.int64)], zero=zero_with_any("self"),
    sign=keeps_sign("self"), nan=Nan.KEPT,
)  # fmt: skip
pointwise(
    aten.clone.default, expression=lambda x: x, onnx=lambda graph, dtype, x: x, flops=1, samples=[call(MIXED)],
    zero=zero_with_any("self"), sign=keeps_sign("self"), nan=Nan.KEPT,
)  # fmt: skip
