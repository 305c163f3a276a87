"""Expressions that stay float32: TVM simplifies floats as if they were real numbers.

``(x + c) - c`` becomes ``x``, which takes the meaning from formulas that are written for rounding. What is *opaque* is
left alone: its bits are read as an integer and back, of which nothing is left in machine code.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx


def opaque(x: Any) -> Any:
    """Returns the float32 expression ``x`` as one whose formula no rule of TVM sees."""
    return tirx.reinterpret("float32", tirx.reinterpret("int32", x))
