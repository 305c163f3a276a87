"""The element type of a TE expression, whatever kind of node it is."""

from __future__ import annotations

from typing import Any


def dtype_of(expression: Any) -> str:
    """``float32``, ``bool``, ... of a tensor, an element of one, or an expression."""
    dtype = getattr(expression, "dtype", None)
    return str(expression.ty.dtype if dtype is None else dtype)
