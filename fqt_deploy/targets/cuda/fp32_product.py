"""fp32 products: tiles in shared memory, a block of results in the registers of each thread.

One rule for all of them: the operands' indices say which axes are rows, columns and contraction. Each multiply-add
rounds once; a long contraction with a small result is split by index, so that results do not depend on the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import tvm_ffi
from tvm import ir, tirx
from tvm.ir.expr import Call, TensorLoad

from fqt_deploy.targets.cuda import generic
from fqt_deploy.targets.cuda.features import CudaFeatures
from fqt_deploy.targets.cuda.kernel_builder import (
    REFERENCE_PROCESSORS,
    barrier,
    ceil_div,
    fused_multiply_add,
    integer,
    launch,
    local,
    loop,
    scratch,
    sequence,
    shared,
    store,
    when,
    with_buffers,
)
from fqt_deploy.targets.cuda.loop_nest import (
    Axis,
    LoopNest,
    Value,
    formulas_of,
    substituted,
    unflattened,
)

_IF_THEN_ELSE = ir.Op.get("prim.if_then_else")

DEPTH = 16
"""Terms of the contraction in shared memory at once."""
QUAD = 4
"""Neighbouring results of a thread: read from shared memory as one vector."""
SIDE = 16
"""Threads along each side of a block."""
CHUNK_TERMS = 512
"""A contraction is split only into parts of at least this many terms."""


class Fp32ProductRule:
    """Takes every fp32 convolution and matrix product."""

    ops: ClassVar[frozenset[str]] = frozenset(
        {
            "conv2d", "conv2d_input_grad", "conv2d_weight_grad",
            "linear", "linear_input_grad", "linear_weight_grad", "batch_matmul",
        }
    )  # fmt: skip

    def apply(self, function: tirx.PrimFunc, features: CudaFeatures) -> tirx.PrimFunc | None:
        """None where the loop nest is no product of two operands."""
        (nest,) = formulas_of(function).nests
        contraction = _contraction(nest)
        return None if contraction is None else function.with_body(contraction.emit())


@dataclass(frozen=True)
class _Side:
    """One operand: its value by axes, the axes of the result that it depends on, and whether terms are contiguous."""

    value: Any
    axes: tuple[Axis, ...]
    contiguous_terms: bool

    @property
    def extent(self) -> int:
        return math.prod(axis.extent for axis in self.axes)


@dataclass(frozen=True)
class _Contraction:
    """``result[batch, row, column] = sum over terms of left[batch, row, term] * right[batch, column, term]``."""

    nest: LoopNest
    batch: tuple[Axis, ...]
    left: _Side
    right: _Side

    def emit(self) -> Any:
        """The product, and where its contraction is split, the sum of the parts."""
        quads = 2 if self.left.extent >= 128 and self.right.extent >= 128 else 1
        tile = SIDE * QUAD * quads
        batch = math.prod(axis.extent for axis in self.batch)
        down, across = ceil_div(self.left.extent, tile), ceil_div(self.right.extent, tile)
        wanted = ceil_div(2 * REFERENCE_PROCESSORS, down * across * batch)
        parts = max(1, min(wanted, self.nest.terms // CHUNK_TERMS))
        terms = ceil_div(ceil_div(self.nest.terms, parts), DEPTH) * DEPTH
        (value,) = self.nest.values
        partial = scratch((parts, self.nest.size), "float32", "partial")
        position = {axis.var: i for i, axis in enumerate(self.nest.axes)}

        def write(b: Any, row: Any, column: Any, part: Any, total: Any) -> Any:
            at: list[Any] = [integer(0)] * len(position)
            for axes, flat in ((self.batch, b), (self.left.axes, row), (self.right.axes, column)):
                for axis, where in zip(axes, unflattened(flat, axes), strict=True):
                    at[position[axis.var]] = where
            if parts == 1:
                return store(value.buffer, total, *(substituted(i, self.nest.axes, at) for i in value.indices))
            flat = integer(0)
            for axis, where in zip(self.nest.axes, at, strict=True):
                flat = flat * axis.extent + where
            return store(partial, total, part, flat)

        def body(block: Any, thread: Any) -> Any:
            column, row = block % across * tile, block // across % down * tile
            rest = block // (across * down)
            b, part = rest % batch, rest // batch
            return self._block(b, row, column, part, thread, quads, terms, write)

        product = launch(across * down * batch * parts, SIDE * SIDE, body)
        if parts == 1:
            return product
        part = Axis(tirx.Var("part", "int32"), parts)
        flat = integer(0)
        for axis in self.nest.axes:
            flat = flat * axis.extent + axis.var
        total = Value(value.buffer, value.indices, partial[part.var, flat], value.initial, value.combine)
        combine = generic.reduction(LoopNest("parts", self.nest.axes, (part,), (total,)))
        return with_buffers([partial], sequence(product, combine))

    def _block(self, b: Any, row: Any, column: Any, part: Any, thread: Any, quads: int, terms: int, write: Any) -> Any:
        size, tile = QUAD * quads, SIDE * QUAD * quads
        a, c = shared((DEPTH, tile + QUAD), "float32", "rows"), shared((DEPTH, tile + QUAD), "float32", "columns")
        sums = local((size, size), "float32", "sums")
        left, right = local((size,), "float32", "left"), local((size,), "float32", "right")
        down, across = thread // SIDE, thread % SIDE

        def fill(buffer: tirx.Buffer, side: _Side, first: Any, begin: Any) -> Any:
            def one(step: Any) -> Any:
                index = step * (SIDE * SIDE) + thread
                if side.contiguous_terms:
                    inner, outer = index % DEPTH, index // DEPTH
                else:
                    inner, outer = index // tile, index % tile
                term, at = begin + inner, first + outer
                axes = (*self.batch, *side.axes, *self.nest.reduced)
                where = [*unflattened(b, self.batch), *unflattened(at, side.axes)]
                value = substituted(side.value, axes, [*where, *unflattened(term, self.nest.reduced)])
                exists = tirx.all(at < side.extent, term < self.nest.terms)
                guarded = tirx.if_then_else(exists, value, tirx.const(0.0, "float32"))
                return store(buffer, guarded, inner, outer)

            return loop(DEPTH * tile // (SIDE * SIDE), one, unroll=True)

        def offset(i: int) -> int:
            return i // QUAD * (SIDE * QUAD) + i % QUAD

        def multiply(k: Any) -> Any:
            return sequence(
                *(store(left, a[k, down * QUAD + offset(i)], i) for i in range(size)),
                *(store(right, c[k, across * QUAD + offset(j)], j) for j in range(size)),
                *(
                    store(sums, fused_multiply_add(left[i], right[j], sums[i, j]), i, j)
                    for i in range(size)
                    for j in range(size)
                ),
            )

        def stage(step: Any) -> Any:
            begin = part * terms + step * DEPTH
            return sequence(
                fill(a, self.left, row, begin),
                fill(c, self.right, column, begin),
                barrier(),
                loop(DEPTH, multiply),
                barrier(),
            )

        def finish(i: int, j: int) -> Any:
            at_row, at_column = row + down * QUAD + offset(i), column + across * QUAD + offset(j)
            exists = tirx.all(at_row < self.left.extent, at_column < self.right.extent)
            return when(exists, write(b, at_row, at_column, part, sums[i, j]))

        pairs = [(i, j) for i in range(size) for j in range(size)]
        return with_buffers(
            [a, c, sums, left, right],
            sequence(
                *(store(sums, tirx.const(0.0, "float32"), i, j) for i, j in pairs),
                loop(terms // DEPTH, stage),
                *(finish(i, j) for i, j in pairs),
            ),
        )


def _contraction(nest: LoopNest) -> _Contraction | None:
    """The nest as a product, its guard moved to the operand that it protects."""
    (value,) = nest.values
    expression, guard = value.expression, None
    if isinstance(expression, Call) and expression.op.same_as(_IF_THEN_ELSE):
        guard, expression, _ = expression.args
    if not isinstance(expression, tirx.Mul):
        return None
    factors = [expression.a, expression.b]
    if not all(isinstance(f, TensorLoad) for f in factors):
        return None
    used = [_variables(f) for f in factors]
    if guard is not None:
        needs = _variables(guard)
        owner = next((i for i in range(2) if needs <= used[i]), None)
        if owner is None:
            return None
        factors[owner] = tirx.if_then_else(guard, factors[owner], tirx.const(0.0, "float32"))
    batch = tuple(a for a in nest.axes if a.var in used[0] and a.var in used[1])
    rows = tuple(a for a in nest.axes if a.var in used[0] and a.var not in used[1])
    columns = tuple(a for a in nest.axes if a.var in used[1] and a.var not in used[0])
    if len(batch) + len(rows) + len(columns) != len(nest.axes):
        return None
    swap = bool(rows) and bool(columns) and nest.axes[-1].var.same_as(rows[-1].var)  # results are written along columns
    sides = [_side(factors[0], expression.a, rows, nest), _side(factors[1], expression.b, columns, nest)]
    left, right = reversed(sides) if swap else sides
    return _Contraction(nest, batch, left, right)


def _side(value: Any, load: Any, axes: tuple[Axis, ...], nest: LoopNest) -> _Side:
    last = _variables(load.indices[-1])
    return _Side(value, axes, any(axis.var in last for axis in nest.reduced))


def _variables(expression: Any) -> set[Any]:
    found: set[Any] = set()
    tvm_ffi.structural_walk(expression, (tirx.Var, lambda var: found.add(var)))
    return found
