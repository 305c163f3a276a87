"""Weight-gradient product by table: tables of a few channels' codes over a run of positions, for many panels."""

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
    MINIMUM_USES,
    WORDS,
    add_products,
    can_look_up,
    subset_sums,
)
from fqt_deploy.targets.cpu.register_tile import largest_divisor
from fqt_deploy.targets.products import BitWeightGradient
from fqt_deploy.targets.tuning_log import Tile

RUN_WORDS = 16
"""Number of words of positions whose tables are alive at once: with eight channels, 16 KB."""
ROWS = 8
"""Upper bound of the kept channels in a tile."""
JOBS = 8
"""Number of independent pieces to cut a product into, where it is large enough: work for that many threads."""


class TableWeightGradient:
    """The weight-gradient product by tables, in tiles of kept channels and groups of panels."""

    name: ClassVar[str] = TABLE_LOOKUP

    def accepts(self, product: BitWeightGradient, features: CpuFeatures) -> bool:
        """Whether the product has whole panels and uses each table often enough."""
        return product.has_whole_panels and can_look_up(features, product.bits, product.plane_panels)

    def tiles(self, product: BitWeightGradient, features: CpuFeatures) -> tuple[Tile, ...]:
        """The tile of kept channels and panels: as many of them as there are accumulators."""
        rows = _tile_rows(product, ROWS)
        return ((rows, largest_divisor(_panels_in_a_row(product), features.accumulators // rows)),)

    def kernel(self, product: BitWeightGradient, tile: Tile, features: CpuFeatures) -> tirx.PrimFunc:
        """The kernel: it builds the tables of a run of positions, then goes through groups of panels."""
        return _kernel(_Cut(product, _tile_rows(product, tile[0]), largest_divisor(_panels_in_a_row(product), tile[1])))


def _tile_rows(product: BitWeightGradient, most: int) -> int:
    """Number of kept channels in a tile, at most ``most``."""
    return next(r for r in (8, 4, 2, 1) if r <= most and product.kept % r == 0)


def _panels_in_a_row(product: BitWeightGradient) -> int:
    """Number of panels of one plane that lie one after another."""
    return product.plane_panels if product.planes == 1 else product.tap_panels // product.planes


@dataclass(frozen=True)
class _Cut:
    """A product and how it is cut.

    Attributes:
        product: what is computed.
        rows: kept channels of a tile.
        tile: panels of a tile.
    """

    product: BitWeightGradient
    rows: int
    tile: int

    @property
    def per_job(self) -> int:
        """Number of panels of a plane in a job, a multiple of those of a tile."""
        panels = self.product.plane_panels
        groups = max(1, min(panels // MINIMUM_USES, -(-JOBS * self.rows // self.product.kept)))
        return -(-panels // (groups * self.tile)) * self.tile

    @property
    def panel_jobs(self) -> int:
        """Number of jobs over the same kept channels."""
        return -(-self.product.plane_panels // self.per_job)

    @property
    def jobs(self) -> int:
        """Number of independent jobs."""
        return self.panel_jobs * (self.product.kept // self.rows)

    @property
    def run(self) -> int:
        """Number of words of positions whose tables are alive at once."""
        return min(RUN_WORDS, self.product.words)

    def channel(self, job: Any, r: Any) -> Any:
        """A kept channel of a job."""
        return job // self.panel_jobs * self.rows + r

    def panel(self, job: Any, number: Any) -> Any:
        """A panel of a plane, of a job."""
        return job % self.panel_jobs * self.per_job + number

    def place(self, panel: Any, lane: Any) -> tuple[Any, Any, Any]:
        """Channel of the input, row and column of the kernel of a lane of a panel."""
        own = self.product.plane_panels // self.product.taps
        return (panel % own * PANEL + lane, *self.product.tap(panel // own))

    def mask(self, panel: Any) -> tuple[Any, Any]:
        """Panel and lane of the masks of a panel's tap."""
        tap = panel // (self.product.plane_panels // self.product.taps)
        return tap // PANEL, tap % PANEL

    @property
    def distance(self) -> int:
        """Number of panels between those of neighbouring planes."""
        return self.product.tap_panels // self.product.planes

    def before(self, counts: Any, planes: int) -> Any:
        """What a tile's sums begin with: those of the runs before, or zeros where planes are shifted together first."""
        return counts if planes == 1 else T.broadcast(0, PANEL)

    def after(self, counts: Any, total: Any, planes: int) -> Any:
        """The counts with a tile's sums."""
        return total if planes == 1 else counts + total

    def codes(self, planes: Any, word: Any, channel: Any) -> list[Any]:
        """A word of every plane of a kept channel."""
        return [planes[word, plane, channel] for plane in range(self.product.bits)]


@script.macro
def _add_words(
    c: _Cut, tables: Any, positions: Any, total: Any, panel: Any, begin: Any, w: Any, count: Any, together: Any
) -> None:
    """Add the products of ``together`` words from ``w`` on of a run."""
    add_products(
        total,
        c.rows,
        count,
        together,
        lambda p, u: positions[panel + p, begin + w + u, T.ramp(0, 1, PANEL)],
        lambda r, u, half: tables[w + u, r, half, T.ramp(0, 1, 64)],
    )


@script.macro
def _accumulate(
    c: _Cut, tables: Any, positions: Any, counts: Any, panel: Any, distance: Any, into: Any, begin: Any, count: Any,
    planes: Any,
) -> None:  # fmt: skip
    """Add the products of ``count`` panels over the run of words from ``begin`` on to ``counts[into:]``.

    Those of ``planes`` planes, ``distance`` panels apart, are added from the highest on, each worth two of the next.
    """
    total = T.alloc_buffer((c.rows, count, PANEL), "int32")
    for r in T.unroll(c.rows):
        for p in T.unroll(count):
            total[r, p, T.ramp(0, 1, PANEL)] = c.before(counts[into + p, r, T.ramp(0, 1, PANEL)], planes)
    for k in T.serial(planes):
        if planes > 1:
            for r in T.unroll(c.rows):
                for p in T.unroll(count):
                    total[r, p, T.ramp(0, 1, PANEL)] = total[r, p, T.ramp(0, 1, PANEL)] * T.broadcast(2, PANEL)
        at: T.let = panel + (planes - 1 - k) * distance
        for pair in T.serial(T.min(c.run, c.product.words - begin) // WORDS):
            _add_words(c, tables, positions, total, at, begin, pair * WORDS, count, WORDS)
        if T.min(c.run, c.product.words - begin) % WORDS == 1:
            _add_words(c, tables, positions, total, at, begin, T.min(c.run, c.product.words - begin) - 1, count, 1)
    for r in T.unroll(c.rows):
        for p in T.unroll(count):
            counts[into + p, r, T.ramp(0, 1, PANEL)] = c.after(
                counts[into + p, r, T.ramp(0, 1, PANEL)], total[r, p, T.ramp(0, 1, PANEL)], planes
            )


@script.macro
def _add_run(c: _Cut, tables: Any, planes: Any, positions: Any, counts: Any, masks: Any, job: Any, begin: Any) -> None:
    """Build the tables of a run, and add its products with the masks and the panels of a job."""
    for w in T.serial(T.min(c.run, c.product.words - begin)):
        for r in T.unroll(c.rows):
            for half in T.unroll(HALVES):
                tables[w, r, half, T.ramp(0, 1, 64)] = subset_sums(c.codes(planes, begin + w, c.channel(job, r)), half)
    for panel in T.serial(c.product.mask_panels):
        _accumulate(c, tables, positions, masks, c.product.channel_panels + panel, 0, panel, begin, 1, 1)
    for group in T.serial(c.per_job // c.tile):
        if c.panel(job, group * c.tile) < c.product.plane_panels:
            first: T.let = c.product.plane_panel(c.panel(job, group * c.tile), 0)
            _accumulate(
                c, tables, positions, counts, first, c.distance, group * c.tile, begin, c.tile, c.product.planes
            )


@script.macro
def _write(c: _Cut, counts: Any, masks: Any, result: Any, job: Any) -> None:
    """Write the results of a job."""
    for r, panel in T.grid(c.rows, c.per_job):
        at: T.let = c.panel(job, panel)
        if at < c.product.plane_panels:
            for lane in T.vectorized(PANEL):
                result[c.channel(job, r), c.place(at, lane)[0], c.place(at, lane)[1], c.place(at, lane)[2]] = (
                    c.product.level(counts[panel, r, lane], masks[c.mask(at)[0], r, c.mask(at)[1]])
                )


def _kernel(c: _Cut) -> tirx.PrimFunc:
    """The TIR function of the gradient that is cut as ``c`` says."""
    p = c.product

    @script.prim_func(s_tir=True)
    def product(
        planes: T.Buffer((p.words, p.bits, p.kept), "int32"),
        positions: T.Buffer((p.panels, p.words, PANEL), "int32"),
        result: T.Buffer((p.kept, p.results, p.kernel[0], p.kernel[1]), "int32"),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        for job in T.parallel(c.jobs):
            counts = T.alloc_buffer((c.per_job, c.rows, PANEL), "int32")
            masks = T.alloc_buffer((p.mask_panels, c.rows, PANEL), "int32")
            tables = T.alloc_buffer((c.run, c.rows, HALVES, 64), "int8")
            for panel, r in T.grid(c.per_job, c.rows):
                counts[panel, r, T.ramp(0, 1, PANEL)] = T.broadcast(0, PANEL)
            for panel, r in T.grid(p.mask_panels, c.rows):
                masks[panel, r, T.ramp(0, 1, PANEL)] = T.broadcast(0, PANEL)
            for piece in T.serial((p.words + c.run - 1) // c.run):
                _add_run(c, tables, planes, positions, counts, masks, job, piece * c.run)
            _write(c, counts, masks, result, job)

    return product
