"""A loop nest read as a matrix product: which axes are rows, columns and terms, and what can be read as vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import tvm_ffi
from tvm import ir, tirx
from tvm.ir.expr import Call, TensorLoad

from fqt_deploy.targets.cuda.kernel_builder import integer, scratch
from fqt_deploy.targets.cuda.loop_nest import Axis, LoopNest, Value, substituted, unflattened

_IF_THEN_ELSE = ir.Op.get("prim.if_then_else")
VECTOR = 4
"""Number of floats that one instruction reads or writes."""
COPY_USES = 1024
"""Number of rows on the other side from which on copying an operand first costs little beside the product."""


@dataclass(frozen=True)
class Side:
    """One operand of a product.

    Attributes:
        load: its element, by axes.
        guard: condition under which the element exists; elsewhere it is 0.
        axes: axes of the result that it depends on: rows, or columns.
        along_terms: whether neighbouring terms lie side by side in memory, not neighbouring rows.
        width: how many neighbours can be read at once: ``VECTOR``, or 1.
    """

    load: Any
    guard: Any
    axes: tuple[Axis, ...]
    along_terms: bool
    width: int

    @property
    def extent(self) -> int:
        """Number of rows, or of columns."""
        return math.prod(axis.extent for axis in self.axes)


@dataclass(frozen=True)
class Contraction:
    """A product ``result[batch, row, column] = sum over terms of left[batch, row, term] * right[batch, column, term]``.

    Attributes:
        nest: the loop nest.
        batch: axes that both operands depend on.
        left: rows.
        right: columns; along them results lie side by side.
    """

    nest: LoopNest
    batch: tuple[Axis, ...]
    left: Side
    right: Side

    @property
    def size(self) -> int:
        """Number of products of the batch."""
        return math.prod(axis.extent for axis in self.batch)

    @property
    def writes_vectors(self) -> bool:
        """Whether the results of ``VECTOR`` neighbouring columns lie side by side, aligned."""
        last = self.right.axes[-1] if self.right.axes else None
        value = self.nest.values[0]
        return (
            last is not None
            and last.extent % VECTOR == 0
            and self.nest.axes[-1].var.same_as(last.var)
            and value.indices[-1].same_as(last.var)
        )

    def with_copies(self) -> tuple[Contraction, list[LoopNest]]:
        """The same from copies of operands whose elements lie apart, and the stages that copy."""
        left, right = self._copied(self.left), self._copied(self.right)
        copies = [found[1] for found in (left, right) if found]
        return replace(self, left=left[0] if left else self.left, right=right[0] if right else self.right), copies

    def _copied(self, side: Side) -> tuple[Side, LoopNest] | None:
        """The operand, and a stage that copies it: where its elements lie apart, in the order of rows.

        None where it need not be, or where the copy is not small beside the product or larger than the operand.
        """
        other = self.right if side is self.left else self.left
        grows = side.extent * self.nest.terms > math.prod(int(d) for d in side.load.source.shape)
        if side.width > 1 or side.extent % VECTOR or side.guard is not None or self.batch:
            return None
        if grows or other.extent < COPY_USES:
            return None
        term, row = Axis(tirx.Var("term", "int32"), self.nest.terms), Axis(tirx.Var("row", "int32"), side.extent)
        buffer = scratch((term.extent, row.extent), "float32", "copied")
        _, source, indices = self.operand(side, integer(0), row.var, term.var)
        stage = LoopNest("copy", (term, row), (), (Value(buffer, (term.var, row.var), source[tuple(indices)]),))
        load = buffer[_row_major(self.nest.reduced), _row_major(side.axes)]
        return Side(load, None, side.axes, False, VECTOR), stage

    def operand(self, side: Side, b: Any, at: Any, term: Any) -> tuple[Any, tirx.Buffer, list[Any]]:
        """Guard, buffer and indices of an element, which begins ``side.width`` contiguous ones."""
        axes = (*self.batch, *side.axes, *self.nest.reduced)
        where = [*unflattened(b, self.batch), *unflattened(at, side.axes), *unflattened(term, self.nest.reduced)]
        guard = True if side.guard is None else substituted(side.guard, axes, where)
        return guard, side.load.source, [substituted(index, axes, where) for index in side.load.indices]

    def positions(self, b: Any, row: Any, column: Any) -> list[Any]:
        """The place of an element of the result along the axes of the nest."""
        at: dict[Any, Any] = {}
        for axes, flat in ((self.batch, b), (self.left.axes, row), (self.right.axes, column)):
            at.update(zip((axis.var for axis in axes), unflattened(flat, axes), strict=True))
        return [at[axis.var] for axis in self.nest.axes]


def contraction_of(nest: LoopNest) -> Contraction | None:
    """The nest as a product, its guard moved to the operand that it protects; None if it is none."""
    (value,) = nest.values
    expression, guard = value.expression, None
    if isinstance(expression, Call) and expression.op.same_as(_IF_THEN_ELSE):
        guard, expression, _ = expression.args
    if not isinstance(expression, tirx.Mul):
        return None
    loads = [expression.a, expression.b]
    if not all(isinstance(load, TensorLoad) for load in loads):
        return None
    used = [_variables(load) for load in loads]
    guards: list[Any] = [None, None]
    if guard is not None:
        needs = _variables(guard)
        owner = next((i for i in range(2) if needs <= used[i]), None)
        if owner is None:
            return None
        guards[owner] = guard
    batch = tuple(a for a in nest.axes if a.var in used[0] and a.var in used[1])
    rows = tuple(a for a in nest.axes if a.var in used[0] and a.var not in used[1])
    columns = tuple(a for a in nest.axes if a.var in used[1] and a.var not in used[0])
    if len(batch) + len(rows) + len(columns) != len(nest.axes):
        return None
    swap = bool(rows) and bool(columns) and nest.axes[-1].var.same_as(rows[-1].var)  # results are written along columns
    sides = [_side(loads[0], guards[0], rows, nest), _side(loads[1], guards[1], columns, nest)]
    left, right = reversed(sides) if swap else sides
    return Contraction(nest, batch, left, right)


def _side(load: Any, guard: Any, axes: tuple[Axis, ...], nest: LoopNest) -> Side:
    last = _variables(load.indices[-1])
    along_terms = any(axis.var in last for axis in nest.reduced)
    if not along_terms:  # the order of rows is free: those that lie side by side come last
        axes = tuple(sorted(axes, key=lambda axis: axis.var in last))
    fastest = (nest.reduced if along_terms else axes)[-1:]
    width = VECTOR if fastest and _is_contiguous(load, guard, fastest[0]) else 1
    return Side(load, guard, axes, along_terms, width)


def _row_major(axes: tuple[Axis, ...]) -> Any:
    """The row-major number of a position along ``axes``."""
    flat: Any = integer(0)
    for axis in axes:
        flat = flat * axis.extent + axis.var
    return flat


def _is_contiguous(load: Any, guard: Any, axis: Axis) -> bool:
    """Whether ``VECTOR`` steps along ``axis`` are that many neighbours in memory, aligned and all guarded alike."""
    others = [*load.indices[:-1], *([] if guard is None else [guard])]
    return (
        load.indices[-1].same_as(axis.var)
        and axis.extent % VECTOR == 0
        and int(load.source.shape[-1]) % VECTOR == 0
        and not any(axis.var in _variables(other) for other in others)
    )


def _variables(expression: Any) -> set[Any]:
    found: set[Any] = set()
    tvm_ffi.structural_walk(expression, (tirx.Var, lambda var: found.add(var)))
    return found
