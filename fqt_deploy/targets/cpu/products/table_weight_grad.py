"""Weight-gradient product by table: tables of a few channels' codes over a run of positions, for many panels."""

from __future__ import annotations

from typing import Any, ClassVar

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.ops.lib.packed_words import PANEL, panel_count
from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.register_tile import arguments_of, largest_divisor
from fqt_deploy.targets.cpu.products.table_lookup import (
    HALVES,
    MINIMUM_USES,
    WORDS,
    add_products,
    can_look_up,
    subset_sums,
)

RUN_WORDS = 16
"""Words of positions whose tables are alive at once: with eight channels, 16 KB."""
JOBS = 8
"""Independent pieces to cut a product into, where it is large enough: work for that many threads."""


class TableWeightGradRule:
    """Takes ``bitplane_weight_grad`` with a multiple of 16 input channels where a table is used often enough."""

    ops: ClassVar[frozenset[str]] = frozenset({"bitplane_weight_grad"})

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """A hand-written loop nest over tiles of kept channels and groups of panels."""
        arguments = arguments_of(function)
        words, bits, kept = (int(d) for d in function.params[0].shape)
        if arguments is None or arguments[2] % PANEL:
            return None
        _, _, channels, kernel = arguments
        panels = kernel[0] * kernel[1] * channels // PANEL
        if not can_look_up(features, bits, panels):
            return None
        rows = next(r for r in (8, 4, 2, 1) if kept % r == 0)
        tile = largest_divisor(panels, features.accumulators // rows)
        groups = max(1, min(panels // MINIMUM_USES, -(-JOBS * rows // kept)))
        per_group = -(-panels // (groups * tile)) * tile
        return _product(words, bits, kept, channels, kernel, rows, tile, per_group)


def _product(
    words: int, bits: int, kept: int, channels: int, kernel: list[int], rows: int, tile: int, per_group: int
) -> tirx.PrimFunc:
    """The kernel with ``rows`` channels times ``tile`` panels in a tile and ``per_group`` panels in a job."""
    taps, per_tap = kernel[0] * kernel[1], channels // PANEL
    panels, mask_panels = taps * per_tap, panel_count(taps)
    jobs, run = -(-panels // per_group), min(RUN_WORDS, words)

    @script.macro
    def add_words(
        tables: Any, positions: Any, total: Any, panel: Any, begin: Any, w: Any, count: Any, together: Any
    ) -> None:
        """Add the products of ``together`` words from ``w`` on of a run."""
        add_products(
            total,
            rows,
            count,
            together,
            lambda p, u: positions[panel + p, begin + w + u, T.ramp(0, 1, PANEL)],
            lambda r, u, half: tables[w + u, r, half, T.ramp(0, 1, 64)],
        )

    @script.macro
    def accumulate(tables: Any, positions: Any, counts: Any, panel: Any, into: Any, begin: Any, count: Any) -> None:
        """Add ``count`` panels' products over the run of words from ``begin`` to ``counts[into:]``."""
        total = T.alloc_buffer((rows, count, PANEL), "int32")
        for r in T.unroll(rows):
            for p in T.unroll(count):
                total[r, p, T.ramp(0, 1, PANEL)] = counts[into + p, r, T.ramp(0, 1, PANEL)]
        for pair in T.serial(T.min(run, words - begin) // WORDS):
            add_words(tables, positions, total, panel, begin, pair * WORDS, count, WORDS)
        if T.min(run, words - begin) % WORDS == 1:
            add_words(tables, positions, total, panel, begin, T.min(run, words - begin) - 1, count, 1)
        for r in T.unroll(rows):
            for p in T.unroll(count):
                counts[into + p, r, T.ramp(0, 1, PANEL)] = total[r, p, T.ramp(0, 1, PANEL)]

    @script.prim_func(s_tir=True)
    def product(
        planes: T.Buffer((words, bits, kept), "int32"),
        positions: T.Buffer((panels + mask_panels, words, PANEL), "int32"),
        result: T.Buffer((kept, channels, kernel[0], kernel[1]), "int32"),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        for job in T.parallel(jobs * (kept // rows)):
            counts = T.alloc_buffer((per_group, rows, PANEL), "int32")
            masks = T.alloc_buffer((mask_panels, rows, PANEL), "int32")
            tables = T.alloc_buffer((run, rows, HALVES, 64), "int8")
            for panel, r in T.grid(per_group, rows):
                counts[panel, r, T.ramp(0, 1, PANEL)] = T.broadcast(0, PANEL)
            for panel, r in T.grid(mask_panels, rows):
                masks[panel, r, T.ramp(0, 1, PANEL)] = T.broadcast(0, PANEL)
            for piece in T.serial((words + run - 1) // run):
                for w in T.serial(T.min(run, words - piece * run)):
                    for r in T.unroll(rows):
                        for half in T.unroll(HALVES):
                            tables[w, r, half, T.ramp(0, 1, 64)] = subset_sums(
                                [planes[piece * run + w, p, job // jobs * rows + r] for p in range(bits)], half
                            )
                for panel in T.serial(mask_panels):
                    accumulate(tables, positions, masks, panels + panel, panel, piece * run, 1)
                for group in T.serial(per_group // tile):
                    if job % jobs * per_group + group * tile < panels:
                        accumulate(
                            tables,
                            positions,
                            counts,
                            job % jobs * per_group + group * tile,
                            group * tile,
                            piece * run,
                            tile,
                        )
            for r, panel in T.grid(rows, per_group):
                at: T.let = job % jobs * per_group + panel
                if at < panels:
                    for lane in T.vectorized(PANEL):
                        result[
                            job // jobs * rows + r,
                            at % per_tap * PANEL + lane,
                            at // per_tap // kernel[1],
                            at // per_tap % kernel[1],
                        ] = counts[panel, r, lane] * 2 - masks[at // per_tap // PANEL, r, at // per_tap % PANEL]

    return product
