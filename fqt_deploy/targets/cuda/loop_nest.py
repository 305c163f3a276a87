"""A kernel read as formulas: for each stage its axes, and one expression for each value that it writes.

Thread mappings are then written from the formulas, with whatever element-wise producers were inlined into them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir.expr import TensorLoad

_COMBINERS = {tirx.Add: lambda a, b: a + b, tirx.Min: tirx.min, tirx.Max: tirx.max}


@dataclass(frozen=True)
class Axis:
    """One axis of a stage: its variable and extent."""

    var: tirx.Var
    extent: int


@dataclass(frozen=True)
class Value:
    """One buffer that a stage writes.

    Attributes:
        buffer: the buffer, written at ``indices``.
        indices: expressions of the spatial axes.
        expression: what is written, or the term of a reduction.
        initial: the first value of a reduction; None without one.
        combine: the function of a reduction: the value of two partial results.
    """

    buffer: tirx.Buffer
    indices: tuple[Any, ...]
    expression: Any
    initial: Any = None
    combine: Callable[[Any, Any], Any] | None = None

    def combined(self, a: Any, b: Any) -> Any:
        """The value of two partial results of a reduction."""
        assert self.combine is not None
        return self.combine(a, b)


@dataclass(frozen=True)
class LoopNest:
    """One stage of a kernel.

    Attributes:
        name: name of the stage.
        axes: axes of the result.
        reduced: axes that are summed, minimized or maximized over.
        values: what is written; more than one for a tuple reduction.
    """

    name: str
    axes: tuple[Axis, ...]
    reduced: tuple[Axis, ...]
    values: tuple[Value, ...]

    @property
    def size(self) -> int:
        """Number of elements of the result."""
        return math.prod(axis.extent for axis in self.axes)

    @property
    def terms(self) -> int:
        """Terms of one element of a reduction; 1 without one."""
        return math.prod(axis.extent for axis in self.reduced)


@dataclass(frozen=True)
class KernelFormulas:
    """A kernel as stages in order, and the buffers that live only between them."""

    nests: tuple[LoopNest, ...]
    intermediates: tuple[tirx.Buffer, ...]

    def nest(self, name: str) -> LoopNest:
        """The stage called ``name``."""
        return next(n for n in self.nests if n.name == name)


def formulas_of(function: tirx.PrimFunc) -> KernelFormulas:
    """The stages of a function made by ``te.create_prim_func``."""
    root = function.body.block
    nests: list[LoopNest] = []

    def visit(block: Any) -> None:
        if not block.same_as(root):
            nests.append(nest_of(block))

    tvm_ffi.structural_walk(root.body, (s_tir.SBlock, visit))
    return KernelFormulas(tuple(nests), tuple(root.alloc_buffers))


def nest_of(block: Any) -> LoopNest:
    """The stage that ``block`` computes."""
    spatial: list[Axis] = []
    reduced: list[Axis] = []
    for axis in block.iter_vars:
        kind = spatial if int(axis.iter_type) == tirx.IterVar.DataPar else reduced
        kind.append(Axis(axis.var, int(axis.dom.extent)))
    bound: dict[Any, Any] = {}
    stores: list[Any] = []
    for statement in _flat(block.body):
        if isinstance(statement, tirx.Bind):
            bound[statement.var] = statement.value
        else:
            assert isinstance(statement, tirx.BufferStore), f"stage {block.name_hint} holds {type(statement).__name__}"
            stores.append(statement)
    initial = {s.buffer: s.value for s in _flat(block.init)} if block.init is not None else {}
    values = tuple(_value(store, bound, initial.get(store.buffer)) for store in stores)
    return LoopNest(str(block.name_hint), tuple(spatial), tuple(reduced), values)


def _value(store: Any, bound: Mapping[Any, Any], initial: Any) -> Value:
    expression = bound.get(store.value, store.value) if isinstance(store.value, tirx.Var) else store.value
    if initial is None:
        return Value(store.buffer, tuple(store.indices), expression)
    combiner = next((rule for kind, rule in _COMBINERS.items() if isinstance(expression, kind)), None)
    assert combiner is not None, f"no combination of partial results for {expression}"
    term = expression.b if _loads(expression.a, store.buffer) else expression.a
    assert not _loads(term, store.buffer), f"the term reads the result: {expression}"
    return Value(store.buffer, tuple(store.indices), term, initial, combiner)


def _loads(expression: Any, buffer: tirx.Buffer) -> bool:
    return any(load.source.same_as(buffer) for load in loads_of(expression))


def _flat(statement: Any) -> list[Any]:
    return [s for part in statement.seq for s in _flat(part)] if isinstance(statement, tirx.SeqStmt) else [statement]


def loads_of(expression: Any) -> list[Any]:
    """All reads of buffers in ``expression``."""
    found: list[Any] = []
    tvm_ffi.structural_walk(expression, (TensorLoad, found.append))
    return found


def substituted(expression: Any, axes: tuple[Axis, ...], positions: list[Any]) -> Any:
    """The ``expression`` with each axis replaced by its position."""
    replacement = {
        axis.var: tirx.const(position, "int32") if isinstance(position, int) else position
        for axis, position in zip(axes, positions, strict=True)
    }
    return tvm_ffi.structural_map(expression, (tirx.Var, lambda var: replacement.get(var, var)))


def inlined(expression: Any, nest: LoopNest, *, at: Callable[[Any], Any] | None = None) -> Any:
    """The expression with reads of ``nest``'s result replaced by its formula, or by ``at(load)``."""
    result = nest.values[0]

    def replace(load: Any) -> Any:
        if not load.source.same_as(result.buffer):
            return load
        return at(load) if at is not None else substituted(result.expression, nest.axes, list(load.indices))

    return tvm_ffi.structural_map(expression, (TensorLoad, replace))


def unflattened(flat: Any, axes: tuple[Axis, ...]) -> list[Any]:
    """The position along each axis of the row-major element ``flat``."""
    positions: list[Any] = []
    for axis in reversed(axes):
        last = len(positions) == len(axes) - 1
        positions.append(flat if last else tirx.floormod(flat, axis.extent))
        flat = flat if last else tirx.floordiv(flat, axis.extent)
    return [*reversed(positions)]
