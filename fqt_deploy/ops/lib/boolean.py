"""Arithmetic of booleans as PyTorch defines it: a product is *and*, a sum *or*; LLVM's code generator has neither."""

from __future__ import annotations

from typing import Any

from fqt_deploy.ops.lib.dtypes import dtype_of
from fqt_deploy.ops.lib.late_modules import tirx


def comparable(x: Any) -> Any:
    """The expression ``x`` to compare; LLVM's code generator compares booleans as if they were floats."""
    return x.astype("int8") if dtype_of(x) == "bool" else x


def product(a: Any, b: Any) -> Any:
    """The product of two expressions of one type."""
    return tirx.And(a, b) if dtype_of(a) == "bool" else a * b


def total(a: Any, b: Any) -> Any:
    """The sum of two expressions of one type."""
    return tirx.Or(a, b) if dtype_of(a) == "bool" else a + b


def larger(a: Any, b: Any) -> Any:
    """The larger of two expressions of one type."""
    return tirx.Or(a, b) if dtype_of(a) == "bool" else tirx.max(a, b)


def smaller(a: Any, b: Any) -> Any:
    """The smaller of two expressions of one type."""
    return tirx.And(a, b) if dtype_of(a) == "bool" else tirx.min(a, b)
