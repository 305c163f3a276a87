"""Names of element types, which TVM and NumPy agree on."""

from __future__ import annotations

from typing import Any

import torch


def dtype_name(dtype: torch.dtype) -> str:
    """The name that TVM and NumPy give to a PyTorch dtype."""
    return str(dtype).removeprefix("torch.")


def dtype_of(expression: Any) -> str:
    """The type, ``float32``, ``bool``, ..., of a tensor, an element of one, or an expression of any kind of node."""
    dtype = getattr(expression, "dtype", None)
    return str(expression.ty.dtype if dtype is None else dtype)
