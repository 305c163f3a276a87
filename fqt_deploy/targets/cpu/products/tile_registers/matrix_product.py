"""Product of matrices in tile registers: two tiles of rows at a time, times all columns of a job.

The signs of a job's columns become bytes first, and stay in the second-level cache; then two tiles of rows after the
other become bytes, in the first-level cache, and are multiplied with them. So the result is written row after row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.ops.lib.packed_words import PANEL
from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.products.border_signs import sum_signs
from fqt_deploy.targets.cpu.products.tile_registers.byte_convolution_cut import ByteConvolution
from fqt_deploy.targets.cpu.products.tile_registers.registers import (
    TILE,
    TILE_DEPTH,
    TILE_LANES,
    TILE_ROWS,
    clear_sums,
    configure_tiles,
    expand_weight_columns,
    multiply_two_by_two,
    release_tiles,
    request_tiles,
    store_sums,
)

ROWS = 2 * TILE_ROWS
"""Rows that are multiplied together: two tiles of them, with as many columns."""
PANELS = 2
"""Panels of columns that are multiplied together."""
JOBS = 8
"""Number of independent pieces to cut a product into: work for that many threads."""
ROW_COST = 5
"""How many times as long it takes to make bytes of a row as of a column, of codes of four bits."""
MINIMUM_ROWS = 160
"""Least rows of a product: of 100 rows table lookups are faster, of 197 tiles."""
COLUMN_BYTES = 1 << 20
"""Upper bound of the bytes of a job's columns: less than the second-level cache."""


@dataclass(frozen=True)
class MatrixProduct:
    """A product of bytes with signs, [rows, depth] times [depth, columns]: a convolution of one tap, without padding.

    Attributes:
        c: the convolution; the positions of its result are the rows.
        bands: how many parts the rows are cut into, a job each.
        parts: how many parts the columns are cut into, a job each.
    """

    c: ByteConvolution
    bands: int
    parts: int

    @property
    def rows(self) -> int:
        """Number of rows of the result."""
        return rows_of(self.c)

    @property
    def pairs(self) -> int:
        """Number of pairs of tiles of rows; the last begins inside the one before it, if rows are left over."""
        return -(-self.rows // ROWS)

    @property
    def steps(self) -> int:
        """Number of products along the depth."""
        return self.c.product.depth // TILE_DEPTH

    @property
    def blocks(self) -> int:
        """Number of blocks of columns in a job."""
        return self.c.product.columns // (PANELS * PANEL) // self.parts

    @property
    def jobs(self) -> int:
        """Number of independent pieces of work."""
        return self.bands * self.parts

    def in_bands(self) -> MatrixProduct:
        """The same with rows in as many bands as make enough jobs."""
        return replace(self, bands=min(self.pairs, -(-JOBS // self.parts)))

    def expansions(self) -> int:
        """How long it takes to make bytes: of rows once for each part of columns, of columns once for each band."""
        return ROW_COST * self.rows * self.parts + self.c.product.columns * self.bands

    def first_pair(self, job: Any) -> Any:
        """The first pair of rows of a job, or of the one after its last."""
        return job // self.parts * self.pairs // self.bands

    def pair_count(self, job: Any) -> Any:
        """Number of pairs of rows of a job."""
        return (job // self.parts + 1) * self.pairs // self.bands - self.first_pair(job)

    def start(self, pair: Any) -> Any:
        """The first row of a pair."""
        return tirx.min(pair * ROWS, self.rows - ROWS)

    def operand_row(self, operand: Any, row: Any, step: Any) -> Any:
        """64 bytes of one row of the operand."""
        return self.c.row(operand, *self._position(row, self.c.stride), step)

    def result_position(self, row: Any) -> tuple[Any, Any, Any]:
        """Sample, row and column of the result that a row of the product is."""
        return self._position(row, (1, 1))

    def block_columns(self, job: Any, block: Any) -> Any:
        """The columns of the result of a block of a job."""
        return T.ramp((job % self.parts * self.blocks + block) * PANELS * PANEL, 1, PANELS * PANEL)

    def row_of(self, sums: Any, row: Any) -> Any:
        """The sums of a row of a pair, with all columns of a block."""
        return sums[T.ramp(row * PANELS * TILE_LANES, 1, PANELS * TILE_LANES)]

    def _position(self, row: Any, stride: tuple[int, int]) -> tuple[Any, Any, Any]:
        height, width = self.c.output_hw
        return row // (height * width), row // width % height * stride[0], row % width * stride[1]


def rows_of(c: ByteConvolution) -> int:
    """Number of positions of the result of a convolution."""
    return c.product.samples * c.output_hw[0] * c.output_hw[1]


def cut_matrix(c: ByteConvolution) -> MatrixProduct | None:
    """The cut of a convolution that is a product of matrices, into jobs of some rows; None if it is no such product."""
    one_tap = c.product.kernel == (1, 1) and c.spread == (1, 1) and c.border == (0, 0)
    whole = c.product.depth % TILE_DEPTH == 0 and c.product.columns % (PANELS * PANEL) == 0
    if not one_tap or not whole or rows_of(c) < MINIMUM_ROWS:
        return None
    blocks = c.product.columns // (PANELS * PANEL)
    fewest = -(-c.product.depth * c.product.columns // COLUMN_BYTES)
    cuts = [MatrixProduct(c, 1, parts) for parts in range(1, blocks + 1) if blocks % parts == 0]
    fitting = [cut for cut in cuts if cut.parts >= fewest] or cuts[-1:]
    return min((cut.in_bands() for cut in fitting), key=MatrixProduct.expansions)


@script.macro
def _expand_columns(p: MatrixProduct, weight: Any, columns: Any, job: Any) -> None:
    """Make bytes of the signs of all columns of a job, block after block."""
    for b in T.serial(p.blocks):
        block: T.let = job % p.parts * p.blocks + b
        for u, panel in T.grid(p.steps, PANELS):
            expand_weight_columns(
                columns,
                ((b * p.steps + u) * PANELS + panel) * TILE,
                p.c.product.weight_words(weight, block * PANELS + panel, 2 * u, T.ramp(0, 1, PANEL)),
                p.c.product.weight_words(weight, block * PANELS + panel, 2 * u + 1, T.ramp(0, 1, PANEL)),
            )


@script.macro
def _multiply_pair(
    p: MatrixProduct, rows: Any, columns: Any, sums: Any, constants: Any, result: Any, job: Any, pair: Any
) -> None:
    """Multiply a pair of tiles of rows with all columns of a job; a row that two pairs have is written once."""
    start: T.let = p.start(pair)
    for b in T.serial(p.blocks):
        clear_sums()
        for u in T.serial(p.steps):
            multiply_two_by_two(
                rows,
                2 * u * TILE,
                2 * u * TILE + TILE,
                TILE_DEPTH,
                columns,
                (b * p.steps + u) * PANELS * TILE,
                p.c.instruction,
            )
        store_sums(sums, 0, PANELS)
        for r in T.serial(ROWS):
            if start + r >= pair * ROWS:
                n, y, x = p.result_position(start + r)
                result[n, y, x, p.block_columns(job, b)] = T.cast(
                    p.c.level(
                        sums[T.ramp(r * PANELS * TILE_LANES, 1, PANELS * TILE_LANES)],
                        constants,
                        (y, x),
                        p.block_columns(job, b),
                    ),
                    f"{p.c.dtype}x{PANELS * PANEL}",
                )


@script.macro
def _run_job(p: MatrixProduct, operand: Any, weight: Any, constants: Any, result: Any, job: Any) -> None:
    """Make bytes of the columns of a job, and multiply them with one pair of tiles of rows after the other."""
    columns = T.alloc_buffer((p.blocks * p.steps * PANELS * TILE,), "int32")
    rows = T.alloc_buffer((p.steps * 2 * TILE,), "int32")
    sums = T.alloc_buffer((2 * PANELS * TILE,), "int32")
    configure_tiles(TILE_ROWS)
    _expand_columns(p, weight, columns, job)
    for q in T.serial(p.pair_count(job)):
        pair: T.let = p.first_pair(job) + q
        start: T.let = p.start(pair)
        for r in T.serial(ROWS):
            for u in T.serial(p.steps):
                rows[T.ramp(2 * u * TILE + r * TILE_LANES, 1, TILE_LANES)] = p.operand_row(operand, start + r, u)
        _multiply_pair(p, rows, columns, sums, constants, result, job, pair)
    T.evaluate(release_tiles())


def matrix_kernel(p: MatrixProduct) -> tirx.PrimFunc:
    """The kernel of operand, packed weight and result."""
    c = p.c

    @script.prim_func(s_tir=True)
    def kernel(
        operand: T.Buffer(c.operand, "int32"),
        weight: T.Buffer(c.product.packed_weight, "int32"),
        result: T.Buffer((c.product.samples, c.output_hw[0], c.output_hw[1], c.product.columns), c.dtype),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        T.evaluate(request_tiles())
        if c.of_codes:
            constants = T.alloc_buffer(c.constants_shape, "int32")
            for panel in T.parallel(c.product.panels):
                sum_signs(c.borders, weight, constants, panel)
            for job in T.parallel(p.jobs):
                _run_job(p, operand, weight, constants, result, job)
        else:
            for job in T.parallel(p.jobs):
                _run_job(p, operand, weight, None, result, job)

    return kernel
