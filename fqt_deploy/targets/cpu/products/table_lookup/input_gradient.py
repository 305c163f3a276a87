"""Activation-gradient product by table: the tables of a band of gradient rows are built once and used for every tap.

With strides, the positions of a tile are a stride apart, so that through each tap all of them read gradients, or none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.ops.lib.packed_words import PANEL
from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.form import TABLE_LOOKUP
from fqt_deploy.targets.cpu.products.table_lookup.lookup import (
    HALVES,
    WORDS,
    add_products,
    can_look_up,
    subset_sums,
)
from fqt_deploy.targets.cpu.register_tile import largest_divisor
from fqt_deploy.targets.products import BitInputGradient, Extents, in_short_rows
from fqt_deploy.targets.tuning_log import Tile

BAND_BYTES = 1 << 19
"""Upper bound of the bytes of one band's tables, which are read from the second-level cache."""
ROWS = 8
"""Upper bound of the positions in a tile."""
JOBS = 16
"""Number of independent pieces to cut a product into, where it has so many rows: work for that many threads."""


class TableInputGradient:
    """Gradients that do not exist, between strides or in padding, are empty tables."""

    name: ClassVar[str] = TABLE_LOOKUP

    def accepts(self, product: BitInputGradient, features: CpuFeatures) -> bool:
        """Whole panels, where a table is used often enough."""
        uses = product.taps * product.panels
        return product.has_whole_panels and can_look_up(features, product.bits, uses)

    def tiles(self, product: BitInputGradient, features: CpuFeatures) -> tuple[Tile, ...]:
        """Positions and panels, as many as there are accumulators."""
        rows = _tile_rows(in_short_rows(product, ROWS), ROWS)
        return ((rows, largest_divisor(product.panels, features.accumulators // rows)),)

    def kernel(self, product: BitInputGradient, tile: Tile, features: CpuFeatures) -> tirx.PrimFunc:
        """Tables of a band, then tiles of its positions times all panels."""
        in_rows = in_short_rows(product, ROWS)
        return _kernel(_Cut(in_rows, _tile_rows(in_rows, tile[0]), largest_divisor(product.panels, tile[1])), product)


def _tile_rows(product: BitInputGradient, most: int) -> int:
    """Number of positions in a tile: of one phase, part of a row of the image, or whole rows of one sample."""
    height, width = _phase_extents(product)
    if product.is_pointwise:
        return largest_divisor(width, most)
    return next(
        r for r in (8, 4, 2, 1)
        if r <= most and (width % r == 0 or (r % width == 0 and height % (r // width) == 0))
    )  # fmt: skip


def _phases(product: BitInputGradient) -> Extents:
    """Numbers of phases: what rows and columns of the image leave when divided by the stride, if it divides them."""
    vertical, horizontal = (
        step if extent % step == 0 else 1 for extent, step in zip(product.image, product.stride, strict=True)
    )
    return vertical, horizontal


def _phase_extents(product: BitInputGradient) -> Extents:
    """Rows and columns of one phase of the image."""
    vertical, horizontal = _phases(product)
    return product.image[0] // vertical, product.image[1] // horizontal


@dataclass(frozen=True)
class _Cut:
    """A product and how it is cut.

    Attributes:
        product: what is computed.
        rows: positions of a tile.
        panels: panels of a tile.
    """

    product: BitInputGradient
    rows: int
    panels: int

    @property
    def band(self) -> int:
        """Number of image rows that a job computes: as many as tables in the cache reach for, if enough jobs remain."""
        (height, _), kernel_h = self.product.image, self.product.kernel[0]
        row_bytes = self.width * self.product.words * HALVES * 64
        tile_height = max(1, self.rows // self.phase_width) * self.phases[0]
        return max(
            b for b in range(1, height + 1)
            if height % b == 0 and b % tile_height == 0
            and (b == tile_height or ((b + kernel_h - 1) * row_bytes <= BAND_BYTES and self._leaves_jobs(b)))
        )  # fmt: skip

    def _leaves_jobs(self, band: int) -> bool:
        return self.product.samples * self.product.image[0] // band >= JOBS

    @property
    def bands(self) -> int:
        """Number of bands in an image."""
        return self.product.image[0] // self.band

    @property
    def height(self) -> int:
        """Number of gradient rows that a band reads."""
        return self.band + self.product.kernel[0] - 1

    @property
    def width(self) -> int:
        """Number of gradient columns that a band reads."""
        return self.product.image[1] + self.product.kernel[1] - 1

    @property
    def phases(self) -> Extents:
        """Numbers of phases of rows and columns."""
        return _phases(self.product)

    @property
    def phase_width(self) -> int:
        """Number of columns of a phase."""
        return _phase_extents(self.product)[1]

    @property
    def per_row(self) -> int:
        """Number of positions of a tile that lie in one row of the image."""
        return min(self.rows, self.phase_width)

    def position(self, tile: Any, r: Any) -> tuple[Any, Any]:
        """Row of the band and column of a position of a tile; tiles of one phase lie one after another."""
        (down, across), per_phase = self.phases, self.tiles // (self.phases[0] * self.phases[1])
        phase, first = tile // per_phase, tile % per_phase * self.rows
        row = (first // self.phase_width + r // self.per_row) * down + phase // across
        return row, (first % self.phase_width + r % self.per_row) * across + phase % across

    def reads(self, tile: Any, kh: Any, kw: Any) -> Any:
        """Whether the positions of a tile read gradients through a tap, or zeros between them."""
        axes = zip(self.position(tile, 0), (kh, kw), self.product.border, self.phases, strict=True)
        conditions = [
            tirx.floormod(at + tap - border, step).equal(0) for at, tap, border, step in axes if step > 1
        ]  # fmt: skip
        return tirx.all(*conditions) if conditions else tirx.const(True, "bool")

    def is_read(self, y: Any, z: Any) -> Any:
        """Whether some tile reads a row and a column of the spread gradient."""
        axes = zip((y, z), self.phases, strict=True)
        conditions = [tirx.floormod(at, step).equal(0) for at, step in axes if step > 1]
        return tirx.all(*conditions) if conditions else tirx.const(True, "bool")

    @property
    def tiles(self) -> int:
        """Number of tiles of positions in a band."""
        return self.band * self.product.image[1] // self.rows

    def codes(self, planes: Any, job: Any, y: Any, z: Any, word: Any) -> list[Any]:
        """A word of every plane of the gradient there."""
        at = job // self.bands, y // self.product.stride[0], z // self.product.stride[1]
        return [planes[(*at, plane, word)] for plane in range(self.product.bits)]

    def code_sum(self, planes: Any, job: Any, y: Any, z: Any, word: Any) -> Any:
        """The sum of the codes of that word."""
        first, *others = (tirx.popcount(plane) for plane in self.codes(planes, job, y, z, word))
        for plane, count in enumerate(others, start=1):
            first = first + (count << plane)
        return first

    def tap_sum(self, sums: Any, h: Any, v: Any) -> Any:
        """The sum of all codes that a position of the result is made of."""
        total: Any = sums[h, v]
        for tap in range(1, self.product.taps):
            total = total + sums[h + self.product.tap(tap)[0], v + self.product.tap(tap)[1]]
        return total


@script.macro
def _add_words(
    c: _Cut, tables: Any, weight: Any, total: Any, panel: Any, tile: Any, kh: Any, kw: Any, w: Any, together: Any
) -> None:
    """Add the products of ``together`` words from ``w`` on of one tap of a tile."""
    first: T.let = (
        (c.product.kernel[0] - 1 - kh) * c.product.kernel[1] + c.product.kernel[1] - 1 - kw
    ) * c.product.words + w
    add_products(
        total,
        c.rows,
        c.panels,
        together,
        lambda p, u: weight[panel + p, first + u, T.ramp(0, 1, PANEL)],
        lambda r, u, half: tables[
            c.position(tile, r)[0] + kh, c.position(tile, r)[1] + kw, w + u, half, T.ramp(0, 1, 64)
        ],
    )


@script.macro
def _build_tables(c: _Cut, tables: Any, sums: Any, planes: Any, job: Any) -> None:
    """Tables and sums of the codes of every gradient that a band reads."""
    for h, v in T.grid(c.height, c.width):
        y: T.let = (job % c.bands) * c.band + h - c.product.border[0]
        z: T.let = v - c.product.border[1]
        sums[h, v] = 0
        if c.product.has_gradient(y, z):
            for w in T.serial(c.product.words):
                for half in T.unroll(HALVES):
                    tables[h, v, w, half, T.ramp(0, 1, 64)] = subset_sums(c.codes(planes, job, y, z, w), half)
                sums[h, v] = sums[h, v] + c.code_sum(planes, job, y, z, w)
        elif c.is_read(y, z):
            for w, half in T.grid(c.product.words, HALVES):
                tables[h, v, w, half, T.ramp(0, 1, 64)] = T.broadcast(T.int8(0), 64)


@script.macro
def _multiply_tile(c: _Cut, tables: Any, sums: Any, weight: Any, result: Any, job: Any, group: Any, tile: Any) -> None:
    """The results of one tile of positions and panels."""
    total = T.alloc_buffer((c.rows, c.panels, PANEL), "int32")
    for r in T.unroll(c.rows):
        for p in T.unroll(c.panels):
            total[r, p, T.ramp(0, 1, PANEL)] = T.broadcast(0, PANEL)
    for kh, kw in T.grid(c.product.kernel[0], c.product.kernel[1]):
        if c.reads(tile, kh, kw):
            for pair in T.serial(c.product.words // WORDS):
                _add_words(c, tables, weight, total, group * c.panels, tile, kh, kw, pair * WORDS, WORDS)
            if c.product.words % WORDS == 1:
                _add_words(c, tables, weight, total, group * c.panels, tile, kh, kw, c.product.words - 1, 1)
    for r in T.unroll(c.rows):
        h: T.let = c.position(tile, r)[0]
        v: T.let = c.position(tile, r)[1]
        offset: T.let = c.tap_sum(sums, h, v)
        for p in T.unroll(c.panels):
            result[
                job // c.bands, (job % c.bands) * c.band + h, v, T.ramp((group * c.panels + p) * PANEL, 1, PANEL)
            ] = total[r, p, T.ramp(0, 1, PANEL)] * T.broadcast(2, PANEL) - T.broadcast(offset, PANEL)


def _kernel(c: _Cut, declared: BitInputGradient) -> tirx.PrimFunc:
    """The TIR function of the gradient that is cut as ``c`` says, of operands in the extents that are declared."""
    p, q = c.product, declared

    @script.prim_func(s_tir=True)
    def product(
        planes: T.Buffer((q.samples, q.output[0], q.output[1], q.bits, q.words), "int32"),
        weight: T.Buffer((p.panels, p.contraction, PANEL), "int32"),
        result: T.Buffer((q.samples, q.image[0], q.image[1], q.columns), "int32"),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        codes = T.decl_buffer((p.samples, p.output[0], p.output[1], p.bits, p.words), "int32", data=planes.data)
        gradient = T.decl_buffer((p.samples, p.image[0], p.image[1], p.columns), "int32", data=result.data)
        for job in T.parallel(p.samples * c.bands):
            tables = T.alloc_buffer((c.height, c.width, p.words, HALVES, 64), "int8")
            sums = T.alloc_buffer((c.height, c.width), "int32")
            _build_tables(c, tables, sums, codes, job)
            for group, tile in T.grid(p.panels // c.panels, c.tiles):
                _multiply_tile(c, tables, sums, weight, gradient, job, group, tile)

    return product
