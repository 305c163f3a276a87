"""Convolution of levels by table: the tables of a band of activations are built once and used for every tap and panel.

Codes of more than four bits are digits of four, each with tables of its own. Zeros around the image are empty tables.
"""

from __future__ import annotations

from typing import Any, ClassVar

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.ops.lib.packed_words import PANEL
from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.border_signs import sum_signs
from fqt_deploy.targets.cpu.products.digits import digits_of
from fqt_deploy.targets.cpu.products.form import TABLE_LOOKUP
from fqt_deploy.targets.cpu.products.table_lookup.level_convolution_cut import (
    TabledConvolution,
    tile_rows,
)
from fqt_deploy.targets.cpu.products.table_lookup.lookup import (
    HALVES,
    WORDS,
    add_products,
    has_instructions,
    subset_sums,
)
from fqt_deploy.targets.cpu.register_tile import largest_divisor
from fqt_deploy.targets.products import LevelConvolution, in_short_rows
from fqt_deploy.targets.tuning_log import Tile

MINIMUM_BITS = 2
"""Least width of a code: differing signs are counted faster."""
MINIMUM_USES = 16
"""Least number of uses of a table."""
ROWS = 8
"""Upper bound of the positions in a tile."""


class TableLevelConvolution:
    """The form by table: a tile of positions looks up the weights of several panels."""

    name: ClassVar[str] = TABLE_LOOKUP

    def accepts(self, product: LevelConvolution, features: CpuFeatures) -> bool:
        """Whether the product has whole panels and uses each table often enough."""
        uses = product.taps * product.panels // (product.stride[0] * product.stride[1])
        pays = product.bits >= MINIMUM_BITS and uses >= MINIMUM_USES
        has_digits = product.bits % digits_of(product.bits) == 0
        return product.has_whole_panels and has_digits and pays and has_instructions(features)

    def tiles(self, product: LevelConvolution, features: CpuFeatures) -> tuple[Tile, ...]:
        """Positions and panels, as many as there are accumulators."""
        rows = tile_rows(in_short_rows(product, ROWS), ROWS)
        return ((rows, largest_divisor(product.panels, features.accumulators // rows)),)

    def kernel(self, product: LevelConvolution, tile: Tile, features: CpuFeatures) -> tirx.PrimFunc:
        """The kernel: tables of a job, then tiles of its positions times all panels."""
        in_rows = in_short_rows(product, ROWS)
        cut = TabledConvolution(in_rows, tile_rows(in_rows, tile[0]), largest_divisor(product.panels, tile[1]))
        return _kernel(cut, product)


@script.macro
def _build_tables(c: TabledConvolution, tables: Any, sums: Any, planes: Any, job: Any) -> None:
    """Tables and sums of the codes of every position that a job reads."""
    for g, h, v in T.grid(c.group, c.height, c.width):
        n: T.let = c.source(job, g, h, v)[0]
        y: T.let = c.source(job, g, h, v)[1]
        z: T.let = c.source(job, g, h, v)[2]
        sums[g, h, v] = 0
        if c.is_inside(y, z):
            for w in T.serial(c.product.words):
                for digit in T.unroll(c.digits):
                    for half in T.unroll(HALVES):
                        tables[digit, g, h, v, w, half, T.ramp(0, 1, 64)] = subset_sums(
                            c.codes(planes, (n, y, z), digit, w), half
                        )
                sums[g, h, v] = sums[g, h, v] + c.code_sum(planes, (n, y, z), w)
        else:
            for digit, w, half in T.grid(c.digits, c.product.words, HALVES):
                tables[digit, g, h, v, w, half, T.ramp(0, 1, 64)] = T.broadcast(T.int8(0), 64)


@script.macro
def _add_words(
    c: TabledConvolution,
    tables: Any,
    weight: Any,
    total: Any,
    panel: Any,
    digit: Any,
    tile: Any,
    tap: Any,
    w: Any,
    together: Any,
) -> None:
    """Add the products of ``together`` words from ``w`` on of one tap of a tile."""
    first: T.let = tap * c.product.words + w
    kh: T.let = tap // c.product.kernel[1]
    kw: T.let = tap % c.product.kernel[1]
    add_products(
        total,
        c.rows,
        c.panels,
        together,
        lambda p, u: weight[panel + p, first + u, T.ramp(0, 1, PANEL)],
        lambda r, u, half: tables[c.table(digit, c.read(tile, r, kh, kw), w + u, half)],
    )


@script.macro
def _multiply_tile(
    c: TabledConvolution, tables: Any, sums: Any, signs: Any, weight: Any, result: Any, job: Any, group: Any, tile: Any
) -> None:
    """The results of one tile: digits from the highest on, each shifted by the width of the next."""
    total = T.alloc_buffer((c.rows, c.panels, PANEL), "int32")
    for r in T.unroll(c.rows):
        for p in T.unroll(c.panels):
            total[r, p, T.ramp(0, 1, PANEL)] = T.broadcast(0, PANEL)
    for d in T.serial(c.digits):
        if d > 0:
            for r in T.unroll(c.rows):
                for p in T.unroll(c.panels):
                    total[r, p, T.ramp(0, 1, PANEL)] = total[r, p, T.ramp(0, 1, PANEL)] << T.broadcast(
                        c.digit_bits, PANEL
                    )
        for tap in T.serial(c.product.taps):
            for pair in T.serial(c.product.words // WORDS):
                _add_words(c, tables, weight, total, group * c.panels, c.digits - 1 - d, tile, tap, pair * WORDS, WORDS)
            if c.product.words % WORDS == 1:
                _add_words(
                    c, tables, weight, total, group * c.panels, c.digits - 1 - d, tile, tap, c.product.words - 1, 1
                )
    for r in T.unroll(c.rows):
        offset: T.let = c.tap_sum(sums, tile, r)
        n: T.let = job // c.bands * c.group + c.position(tile, r)[0]
        y: T.let = job % c.bands * c.band + c.position(tile, r)[1]
        for p in T.unroll(c.panels):
            begin: T.let = (group * c.panels + p) * PANEL
            value: T.let = total[r, p, T.ramp(0, 1, PANEL)] * T.broadcast(2, PANEL) - T.broadcast(offset, PANEL)
            result[n, y, c.position(tile, r)[2], T.ramp(begin, 1, PANEL)] = T.cast(
                c.borders.level(value, signs, c.kind(job, tile, r), T.ramp(begin, 1, PANEL)),
                f"{c.product.dtype}x{PANEL}",
            )


def _kernel(c: TabledConvolution, declared: LevelConvolution) -> tirx.PrimFunc:
    """The TIR function of the convolution that is cut as ``c`` says, of operands in the extents that are declared."""
    p, q = c.product, declared

    @script.prim_func(s_tir=True)
    def product(
        planes: T.Buffer((q.samples, q.image[0], q.image[1], q.bits, q.words), "int32"),
        weight: T.Buffer((p.panels, p.contraction, PANEL), "int32"),
        result: T.Buffer((q.samples, q.output[0], q.output[1], q.columns), q.dtype),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        codes = T.decl_buffer((p.samples, p.image[0], p.image[1], p.bits, p.words), "int32", data=planes.data)
        sums_of_levels = T.decl_buffer((p.samples, p.output[0], p.output[1], p.columns), p.dtype, data=result.data)
        signs = T.alloc_buffer(c.borders.shape, "int32")
        if p.signed:
            for panel in T.parallel(p.panels):
                sum_signs(c.borders, weight, signs, panel)
        for job in T.parallel(c.jobs):
            tables = T.alloc_buffer((c.digits, c.group, c.height, c.width, p.words, HALVES, 64), "int8")
            sums = T.alloc_buffer((c.group, c.height, c.width), "int32")
            _build_tables(c, tables, sums, codes, job)
            for group, tile in T.grid(p.panels // c.panels, c.tiles):
                _multiply_tile(c, tables, sums, signs, weight, sums_of_levels, job, group, tile)

    return product
