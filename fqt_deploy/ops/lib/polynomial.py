"""Polynomials of float32 expressions: each term is added in one operation where the processor has one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fqt_deploy.ops.lib.late_modules import tirx


def polynomial(coefficients: Sequence[float], x: Any) -> Any:
    """The value at ``x`` of the polynomial with ``coefficients``, those of the lowest powers first, by Horner's scheme.

    Multiplication and addition round once on processors that fuse them. No formula of PyTorch has these roundings
    anyway, so that they need not be kept apart where bits are made of the result, as products of a model are.
    """
    value: Any = tirx.const(coefficients[-1], "float32")
    for coefficient in coefficients[-2::-1]:
        value = tirx.call_intrin("float32", "tirx.fma", value, x, tirx.const(coefficient, "float32"))
    return value
