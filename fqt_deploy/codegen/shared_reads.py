"""Bind an inlined value that a formula reads several times: its own formula then stands there once.

TVM's passes go over the text of a kernel, where each mention of a stage is its whole formula once it is inlined.

Before::

    member0[i] = x[i] * scale
    result[i] = member0[i] * erf(member0[i])

After::

    member0[i] = x[i] * scale
    result[i] = let read0 = member0[i] in read0 * erf(read0)
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import tvm_ffi
from tvm import ir, s_tir, tirx
from tvm.ir import TensorLoad

from fqt_deploy.ops.lib.dtypes import dtype_of

_Element = tuple[Any, str]
"""An array, by identity, as stages of one op have the same name, and its indices."""
_GUARD = ir.Op.get("prim.if_then_else")


def with_shared_reads(function: tirx.PrimFunc, names: Collection[str]) -> tirx.PrimFunc:
    """``function`` with each element of the stages ``names`` read once by a formula, where it is a float32 number.

    An element that is only read under a condition is left alone: it may not exist elsewhere. So are reductions, which
    TVM has to know again, and whose terms are short.
    """
    numbers = itertools.count()

    def shared(value: Any) -> Any:
        reads = _reads(value, names)
        if len({read.source for read in reads}) == len(reads):  # in most kernels; to compare indices takes longer
            return value
        loads = {_element(read): read for read in reads}
        mentions, guarded = Counter(map(_element, reads)), Counter[_Element]()
        tvm_ffi.structural_walk(value, (ir.Call, lambda call: guarded.update(_guarded(call, names))))
        for element, count in mentions.items():
            if count < 2 or guarded[element] >= count:
                continue
            variable = tirx.Var(f"read{next(numbers)}", "float32")
            value = tirx.Let(variable, loads[element], _replaced(value, element, variable))
        return value

    reductions: list[Any] = []

    def visit(block: Any) -> None:
        if block.init is not None:
            tvm_ffi.structural_walk(block.body, (tirx.BufferStore, reductions.append))

    def store(statement: Any) -> Any:
        if any(statement.same_as(r) for r in reductions):
            return statement
        return tirx.BufferStore(statement.buffer, shared(statement.value), statement.indices)

    tvm_ffi.structural_walk(function.body, (s_tir.SBlock, visit))
    return function.with_body(tvm_ffi.structural_map(function.body, (tirx.BufferStore, store)))


def with_own_variables(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """``function`` with a variable of its own for each binding: a stage that was inlined twice has bound the same."""
    numbers = itertools.count()

    def renamed(let: Any) -> Any:
        variable = tirx.Var(f"read{next(numbers)}", dtype_of(let.var))
        body = tvm_ffi.structural_map(let.body, (tirx.Var, lambda var: variable if var.same_as(let.var) else var))
        return tirx.Let(variable, let.value, body)

    return function.with_body(tvm_ffi.structural_map(function.body, (tirx.Let, renamed)))


def _reads(value: Any, names: Collection[str]) -> list[Any]:
    """The reads of float32 elements of the stages ``names`` in ``value``, repeated as often as it mentions them."""
    found: list[Any] = []
    tvm_ffi.structural_walk(value, (TensorLoad, found.append))
    return [read for read in found if str(read.source.name) in names and dtype_of(read) == "float32"]


def _guarded(call: Any, names: Collection[str]) -> Iterator[_Element]:
    """The elements that one of the branches of ``call`` reads, if it has any; repeated as often as it mentions them."""
    if call.op.same_as(_GUARD):
        for branch in call.args[1:]:
            yield from map(_element, _reads(branch, names))


def _replaced(value: Any, element: _Element, variable: Any) -> Any:
    """``value`` with ``variable`` instead of reads of ``element``."""

    def replace(load: Any) -> Any:
        return variable if _element(load) == element else load

    return tvm_ffi.structural_map(value, (TensorLoad, replace))


def _element(load: Any) -> _Element:
    return load.source, str(list(load.indices))
