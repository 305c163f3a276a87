"""fp32 matrix products, one or a batch of them: register tiles over panels of the right operand.

A job is a group of panels of columns of one product, or a part of the rows for them. It copies its panels, and the rows
that it reads across, into the second-level cache, a stretch of terms at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.fp32.matrix_tile import (
    LANES,
    TileShape,
    add_products,
    ceil_div,
    clear,
    round_up,
    tile_shape,
)

_TERMS = 256
"""Number of terms multiplied at a stretch: as many rows of a group of panels stay in the second-level cache."""
_PANEL_BYTES = 1 << 18
"""Upper bound of the bytes of a group of panels."""
_ROWS = 96
"""Number of rows that are copied together where terms lie apart."""
_JOBS = 8
"""Least number of jobs, if there are as many tiles: work for that many threads."""


@dataclass(frozen=True)
class MatrixProduct:
    """The product ``result[b, m, n] = sum over k of left[b, m, k] * right[b, k, n]``.

    Attributes:
        batch: number of products.
        rows, columns, terms: extents of each.
        left_across: whether the left operand lies as [batch, terms, rows].
        right_across: whether the right operand lies as [batch, columns, terms].
    """

    batch: int
    rows: int
    columns: int
    terms: int
    left_across: bool
    right_across: bool


def matrix_product_of(function: tirx.PrimFunc) -> MatrixProduct:
    """The product that a matrix op's kernel computes, from the shapes of its operands."""
    op = str(function.attrs["fqt.op"])
    first, _, result = ([int(d) for d in p.shape] for p in function.params)
    batch, (rows, columns) = (result[0] if len(result) == 3 else 1), result[-2:]
    terms = first[0] if op == "linear_weight_grad" else first[-1]
    return MatrixProduct(batch, rows, columns, terms, op == "linear_weight_grad", op == "linear")


class Fp32MatmulRule:
    """Takes every product of matrices."""

    ops: ClassVar[frozenset[str]] = frozenset({"batch_matmul", "linear", "linear_input_grad", "linear_weight_grad"})

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """Returns the kernel in register tiles."""
        return _kernel(_Cut(matrix_product_of(function), tile_shape(features)), function)


@dataclass(frozen=True)
class _Cut:
    """A product and how it is cut.

    Attributes:
        product: what is computed.
        tile: what stays in registers.
    """

    product: MatrixProduct
    tile: TileShape

    @property
    def stretch(self) -> int:
        """Number of terms that are multiplied at a time."""
        return min(self.product.terms, _TERMS)

    @property
    def stretches(self) -> int:
        """Number of such stretches, the last of which may be shorter."""
        return ceil_div(self.product.terms, self.stretch)

    @property
    def vectors(self) -> int:
        """Number of vectors that cover the columns."""
        return ceil_div(self.product.columns, LANES)

    @property
    def panels(self) -> int:
        """Number of panels, the last of which may be narrower."""
        return ceil_div(self.vectors, self.tile.vectors)

    @property
    def group(self) -> int:
        """Number of panels of a job: as many as fit the cache, fewer where that leaves threads without work."""
        fitting = max(1, _PANEL_BYTES // (self.stretch * self.tile.width * 4))
        wanted = ceil_div(_JOBS, self.product.batch)
        return max(1, min(fitting, self.panels, ceil_div(self.panels, wanted)))

    @property
    def groups(self) -> int:
        """Number of groups of panels of a product."""
        return ceil_div(self.panels, self.group)

    @property
    def block(self) -> int:
        """Number of rows that are multiplied with a group of panels at a time."""
        return min(_ROWS // self.tile.rows * self.tile.rows, round_up(self.product.rows, self.tile.rows))

    @property
    def blocks(self) -> int:
        """Number of blocks of rows."""
        return ceil_div(self.product.rows, self.block)

    @property
    def parts(self) -> int:
        """Number of jobs that share the rows of a group of panels."""
        return min(self.blocks, ceil_div(_JOBS, self.product.batch * self.groups))

    def left(self, operand: Any, b: Any, row: Any, term: Any) -> Any:
        """An element of the left operand; rows that there are not are the last one."""
        at = T.min(row, self.product.rows - 1)
        place = (term, at) if self.product.left_across else (at, term)
        return operand[(b, *place)] if len(operand.shape) == 3 else operand[place]

    def right(self, operand: Any, b: Any, term: Any, column: Any) -> Any:
        """An element of the right operand; columns that there are not are the last one."""
        at = T.min(column, self.product.columns - 1)
        place = (at, term) if self.product.right_across else (term, at)
        return operand[(b, *place)] if len(operand.shape) == 3 else operand[place]

    def right_vector(self, operand: Any, b: Any, term: Any, column: Any) -> Any:
        """Sixteen columns of a term of the right operand, which lie side by side."""
        return operand[self.vector(operand, b, term, column)]

    def vector(self, result: Any, b: Any, row: Any, column: Any) -> tuple[Any, ...]:
        """The indices of sixteen elements of a row from ``column`` on."""
        return self.place(result, b, row, T.ramp(column, 1, LANES))

    def place(self, result: Any, b: Any, row: Any, column: Any) -> tuple[Any, ...]:
        """The indices of an element of the result."""
        return (b, row, column) if len(result.shape) == 3 else (row, column)


@script.macro
def _copy_panels(c: _Cut, panels: Any, right: Any, b: Any, first: Any, count: Any, k: Any, terms: Any) -> None:
    """Copy ``terms`` rows from ``k`` on of ``count`` panels from ``first`` on."""
    for p in T.serial(count):
        if c.product.right_across:
            for v, block in T.grid(c.tile.vectors, ceil_div(c.stretch, LANES)):
                for lane in T.serial(LANES):
                    for t in T.serial(LANES):
                        if block * LANES + t < terms:
                            panels[p, block * LANES + t, v * LANES + lane] = c.right(
                                right, b, k + block * LANES + t, (first + p) * c.tile.width + v * LANES + lane
                            )
        else:
            for t, v in T.grid(terms, c.tile.vectors):
                column: T.let = (first + p) * c.tile.width + v * LANES
                if column + LANES <= c.product.columns:
                    panels[p, t, T.ramp(v * LANES, 1, LANES)] = c.right_vector(right, b, k + t, column)
                else:
                    for lane in T.serial(LANES):
                        panels[p, t, v * LANES + lane] = c.right(right, b, k + t, column + lane)


@script.macro
def _copy_rows(c: _Cut, rows: Any, left: Any, b: Any, first: Any, k: Any, terms: Any) -> None:
    """Copy ``terms`` terms from ``k`` on of a block of rows from ``first`` on, which lie apart."""
    for tile, t in T.grid(c.block // c.tile.rows, terms):
        for r in T.unroll(c.tile.rows):
            rows[tile, t, r] = c.left(left, b, first + tile * c.tile.rows + r, k + t)


@script.macro
def _write(c: _Cut, result: Any, total: Any, vectors: int, b: Any, row: Any, column: Any, add: Any) -> None:
    """Write a tile, or add it to what earlier terms gave."""
    for r in T.unroll(c.tile.rows):
        if row + r < c.product.rows:
            for v in T.unroll(vectors):
                at: T.let = column + v * LANES
                if at + LANES <= c.product.columns:
                    if add:
                        result[c.vector(result, b, row + r, at)] = (
                            result[c.vector(result, b, row + r, at)] + total[r, v, T.ramp(0, 1, LANES)]
                        )
                    else:
                        result[c.vector(result, b, row + r, at)] = total[r, v, T.ramp(0, 1, LANES)]
                else:
                    for lane in T.serial(LANES):
                        if at + lane < c.product.columns:
                            result[c.place(result, b, row + r, at + lane)] = total[r, v, lane] + T.if_then_else(
                                add, result[c.place(result, b, row + r, at + lane)], T.float32(0)
                            )


@script.macro
def _tile(
    c: _Cut, result: Any, left: Any, rows: Any, panels: Any, vectors: int, b: Any, row: Any, tile: Any, p: Any,
    column: Any, k: Any, terms: Any,
) -> None:  # fmt: skip
    """The products of ``terms`` terms from ``k`` on of one tile."""
    total = T.alloc_buffer((c.tile.rows, vectors, LANES), "float32")
    clear(total, c.tile.rows, vectors)
    add_products(
        total,
        c.tile.rows,
        vectors,
        terms,
        lambda r, t: rows[tile, t, r] if c.product.left_across else c.left(left, b, row + r, k + t),
        lambda t, v: panels[p, t, T.ramp(v * LANES, 1, LANES)],
    )
    _write(c, result, total, vectors, b, row, column, k > 0)


@script.macro
def _job(c: _Cut, result: Any, left: Any, right: Any, b: Any, first: Any, part: Any) -> None:
    """One part of the rows of a group of panels."""
    panels = T.alloc_buffer((c.group, c.stretch, c.tile.width), "float32")
    rows = T.alloc_buffer((c.block // c.tile.rows, c.stretch if c.product.left_across else 1, c.tile.rows), "float32")
    count: T.let = T.min(c.group, c.panels - first)
    for s in T.serial(c.stretches):
        k: T.let = s * c.stretch
        terms: T.let = T.min(c.stretch, c.product.terms - k)
        _copy_panels(c, panels, right, b, first, count, k, terms)
        for step in T.serial(ceil_div(c.blocks, c.parts)):
            block: T.let = step * c.parts + part
            if block < c.blocks:
                if c.product.left_across:
                    _copy_rows(c, rows, left, b, block * c.block, k, terms)
                for p, tile in T.grid(count, c.block // c.tile.rows):
                    row: T.let = block * c.block + tile * c.tile.rows
                    column: T.let = (first + p) * c.tile.width
                    if row < c.product.rows:
                        if c.tile.edge(c.product.columns) == 0:  # noqa: SIM114 - known when the macro is expanded
                            _tile(c, result, left, rows, panels, c.tile.vectors, b, row, tile, p, column, k, terms)
                        elif first + p < c.panels - 1:
                            _tile(c, result, left, rows, panels, c.tile.vectors, b, row, tile, p, column, k, terms)
                        else:
                            _tile(
                                c, result, left, rows, panels, c.tile.edge(c.product.columns), b, row, tile, p,
                                column, k, terms,
                            )  # fmt: skip


def _kernel(c: _Cut, function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The TIR function of the product that is cut as ``c`` says; operands are as those of ``function``."""
    first, second, result = ([int(d) for d in p.shape] for p in function.params)
    across = c.product.left_across  # an op with its left operand second: g^T x is called with x, g
    shapes = first, second

    @script.prim_func(s_tir=True)
    def product(a: T.Buffer(shapes[0], "float32"), b: T.Buffer(shapes[1], "float32"), y: T.Buffer(result, "float32")):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        for job in T.parallel(c.product.batch * c.groups * c.parts):
            if across:
                _job(c, y, b, a, job // (c.groups * c.parts), job // c.parts % c.groups * c.group, job % c.parts)
            else:
                _job(c, y, a, b, job // (c.groups * c.parts), job // c.parts % c.groups * c.group, job % c.parts)

    return product
