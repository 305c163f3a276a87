"""Expressions that stay float32: TVM simplifies floats as if they were real numbers.

``(x + c) - c`` becomes ``x``, ``x - x`` becomes 0, ``x != x`` false, ``x * 0`` 0. What is *opaque* is left
alone: its bits are read as an integer and back, which no machine code is left of.
"""

from __future__ import annotations

import math
from functools import cache, reduce
from typing import Any

from fqt_deploy.ops.lib.dtypes import dtype_of
from fqt_deploy.ops.lib.late_modules import ir, tirx

CODED = frozenset(
    {"quantize_samples", "quantize_channels", "quantize_pack_samples", "quantize_pack_channels", "max_pool2d_argmax"}
)
"""Ops whose results are codes or positions, which cannot be NaN: the scale or the maximum is, where an operand is."""
NAN_KEY = 0x7FC00000
"""The key of NaN where it counts as more than all: more than that of infinity."""
LOWEST_KEY = -0x7F800001
"""The key of minus infinity."""


def opaque(x: Any) -> Any:
    """The expression ``x`` as one whose formula no rule of TVM sees; neither float32 nor bool, it stays as it is."""
    if dtype_of(x) == "bool":
        return x.astype("int8").astype("bool")
    return _through("int32", x)


def opaque_operand(x: Any) -> Any:
    """The operand ``x`` of an operation as one that no other is known to equal, not even if both are opaque."""
    return _through("uint32", x)


def _through(dtype: str, x: Any) -> Any:
    return tirx.reinterpret("float32", tirx.reinterpret(dtype, x)) if dtype_of(x) == "float32" else x


def seen_through(x: Any) -> Any:
    """The formula behind an expression that was made opaque, however often; any other as it is."""
    while (inner := _reinterpreted(x)) is not None and (innermost := _reinterpreted(inner)) is not None:
        x = innermost
    return x


def _reinterpreted(x: Any) -> Any:
    return x.args[0] if isinstance(x, ir.Call) and x.op.same_as(_reinterpret()) else None


@cache
def _reinterpret() -> Any:
    return ir.Op.get("tirx.reinterpret")


def number(value: Any, dtype: str) -> Any:
    """A constant; a float32 zero is opaque, or ``x * 0``, ``x + 0`` and ``0 / x`` would be folded."""
    constant = tirx.const(value, dtype)
    return opaque(constant) if dtype == "float32" and value == 0 else constant


def clamped(x: Any, low: Any = None, high: Any = None) -> Any:
    """The float32 expression ``x``, NaN included, or the constant bound that it is beyond; NaN if a bound is."""
    for bound in (low, high):
        if isinstance(bound, tirx.FloatImm) and math.isnan(bound.value):
            return bound
    x = x if low is None else tirx.max(low, x)
    return x if high is None else tirx.min(high, x)


def is_nan(*operands: Any) -> Any:
    """Whether one of float32 expressions is NaN, in vectorized code as well: TVM's own test is scalar.

    As integers, because TVM takes equality and its negation for opposites, and long for many; LLVM tests two at once.
    """
    numbers = [tirx.EQ(x, opaque_operand(x)).astype("int8") for x in operands]
    return tirx.Not(reduce(tirx.bitwise_and, numbers).astype("bool"))


def ordered_key(x: Any, nan: float) -> Any:
    """An int32 that is ordered like the float32 ``x``; any NaN counts as more (``nan`` positive) or less than all.

    The largest key is that of the maximum as PyTorch takes it. A reduction of integers needs no test for NaN.
    """
    return tirx.Select(is_nan(x), tirx.const(NAN_KEY if nan > 0 else ~NAN_KEY, "int32"), _mirrored(_bits(x)))


def of_ordered_key(key: Any) -> Any:
    """The float32 with an ``ordered_key``."""
    return tirx.reinterpret("float32", _mirrored(key))


def _bits(x: Any) -> Any:
    return tirx.reinterpret("int32", x)


def _mirrored(bits: Any) -> Any:
    """Bits of negative numbers without their sign inverted: floats are ordered by magnitude, integers by value."""
    return bits ^ ((bits >> 31) & tirx.const(0x7FFFFFFF, "int32"))
