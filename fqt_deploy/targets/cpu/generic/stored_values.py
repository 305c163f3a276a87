"""Rewrite what the stages of a kernel compute, apart from how a reduction combines its terms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm_ffi
from tvm import s_tir, tirx

_COMBINATIONS = (tirx.Add, tirx.Mul, tirx.Max, tirx.Min)
_STATEMENTS = (tirx.BufferStore, tirx.Bind)


def with_values(function: tirx.PrimFunc, rewrite: Callable[[Any], Any], *, combinations: bool) -> tirx.PrimFunc:
    """``function`` with every stored or bound value rewritten.

    Args:
        function: loop nests as made from TE.
        rewrite: expression -> expression.
        combinations: whether to rewrite a reduction's combination of its result and a term as well, or both alone:
            TVM has to know the combination again to split the reduction.
    """
    reductions: list[Any] = []

    def visit(block: Any) -> None:
        if block.init is not None:
            tvm_ffi.structural_walk(block.body, (_STATEMENTS, reductions.append))

    if not combinations:
        tvm_ffi.structural_walk(function.body, (s_tir.SBlock, visit))

    def value_of(statement: Any) -> Any:
        value = statement.value
        if any(statement.same_as(r) for r in reductions) and isinstance(value, _COMBINATIONS):
            return type(value)(rewrite(value.a), rewrite(value.b))
        return rewrite(value)

    def rewritten(statement: Any) -> Any:
        value = value_of(statement)
        if value.same_as(statement.value):
            return statement
        if isinstance(statement, tirx.Bind):
            return tirx.Bind(statement.var, value)
        return tirx.BufferStore(statement.buffer, value, statement.indices)

    return function.with_body(tvm_ffi.structural_map(function.body, (_STATEMENTS, rewritten)))
