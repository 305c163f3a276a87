"""Weight-gradient product in tile registers: rows of codes over positions, times columns of input bits.

The codes become bytes once, for all columns; the bits of a few columns become bytes for a run of positions at a time,
and the sums over a run are added to those of the runs before.
"""

from __future__ import annotations

from typing import Any, ClassVar

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.ops.packed_words import PANEL, panel_count
from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.amx_tiles import (
    MAXIMUM_BITS,
    TILE,
    TILE_LANES,
    TILE_ROWS,
    UNSIGNED_ROWS,
    bits_table,
    clear_sums,
    configure_tiles,
    expand_columns,
    load_sums,
    multiply_one_by_four,
    multiply_two_by_two,
    neighbours,
    release_tiles,
    request_tiles,
    row_of_codes,
    store_sums,
)
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.register_tile import arguments_of, largest_divisor

MINIMUM_ROWS = 8
"""Emptier tiles are slower than tables."""
RUN = 8
"""Products along positions before the sums are put away: columns of 16 or 32 KB are alive at once."""
JOBS = 8
"""Independent pieces to cut a product into, where it is large enough: work for that many threads."""
TILES = 4
"""Of sums: two of rows by two of columns, or one by four."""


class AmxWeightGradRule:
    """Takes ``bitplane_weight_grad`` with a multiple of 16 input channels where tiles can be filled."""

    ops: ClassVar[frozenset[str]] = frozenset({"bitplane_weight_grad"})

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """A hand-written loop nest: codes, the sums of codes inside each tap, then blocks of panels."""
        arguments = arguments_of(function)
        words, bits, kept = (int(d) for d in function.params[0].shape)
        if arguments is None or not features.has_amx or bits > MAXIMUM_BITS or arguments[2] % PANEL:
            return None
        _, _, channels, kernel = arguments
        rows = largest_divisor(kept, TILE_ROWS)
        return None if rows < MINIMUM_ROWS else _product(words, bits, kept, channels, kernel, rows)


def _product(words: int, bits: int, kept: int, channels: int, kernel: list[int], rows: int) -> tirx.PrimFunc:
    """The kernel with ``rows`` channels in a tile."""
    taps, per_tap = kernel[0] * kernel[1], channels // PANEL
    panels, mask_panels = taps * per_tap, panel_count(taps)
    steps, row_tiles = -(-words // 2), kept // rows
    together = 2 if row_tiles % 2 == 0 else 1
    width = TILES // together
    groups = row_tiles // together
    # taps of a channel are neighbours in the result: one job writes them all, where there are channels for all jobs
    blocks = -(-per_tap // width)
    tap_jobs = next((t for t in range(1, taps + 1) if taps % t == 0 and t * blocks >= JOBS), taps)

    @script.macro
    def expand_codes(planes: Any, codes: Any, tile: Any, r: Any) -> None:
        """All bytes of a kept channel; past the last word they are zero."""
        for step in T.serial(words // 2):
            codes[T.ramp((tile * steps + step) * TILE + r * TILE_LANES, 1, TILE_LANES)] = row_of_codes(
                [
                    neighbours(planes[2 * step, p, tile * rows + r], planes[2 * step + 1, p, tile * rows + r])
                    for p in range(bits)
                ]
            )
        if words % 2 == 1:
            codes[T.ramp((tile * steps + steps - 1) * TILE + r * TILE_LANES, 1, TILE_LANES)] = row_of_codes(
                [neighbours(planes[words - 1, p, tile * rows + r], None) for p in range(bits)]
            )

    @script.macro
    def multiply_block(codes: Any, positions: Any, columns: Any, sums: Any, first: Any, last: Any) -> None:
        """Sums of every group of row tiles with ``width`` panels from ``first`` on; past ``last`` they mean nothing."""
        for run in T.serial((steps + RUN - 1) // RUN):
            for step in T.serial(T.min(RUN, steps - run * RUN)):
                for p in T.unroll(width):
                    panel: T.let = T.min(first + p, last)
                    word: T.let = 2 * (run * RUN + step)
                    expand_columns(
                        columns,
                        (step * width + p) * TILE,
                        bits_table(),
                        positions[panel, word, T.ramp(0, 1, PANEL)],
                        positions[panel, T.min(word + 1, words - 1), T.ramp(0, 1, PANEL)],
                    )
            for group in T.serial(groups):
                if run == 0:
                    clear_sums()
                else:
                    load_sums(sums, group * TILES * TILE, width)
                for step in T.serial(T.min(RUN, steps - run * RUN)):
                    row: T.let = (group * together * steps + run * RUN + step) * TILE
                    if together == 2:
                        multiply_two_by_two(
                            codes, row, row + steps * TILE, 4 * TILE_LANES, columns, step * width * TILE, UNSIGNED_ROWS
                        )
                    else:
                        multiply_one_by_four(codes, row, 4 * TILE_LANES, columns, step * width * TILE, UNSIGNED_ROWS)
                store_sums(sums, group * TILES * TILE, width)

    def sums_at(tile: Any, p: Any, r: Any) -> Any:
        """Where the sums of a row of a tile with a panel of the block begin."""
        return tile // together * TILES * TILE + ((tile % together * TILE_ROWS + r) * width + p) * TILE_LANES

    @script.prim_func(s_tir=True)
    def product(
        planes: T.Buffer((words, bits, kept), "int32"),
        positions: T.Buffer((panels + mask_panels, words, PANEL), "int32"),
        result: T.Buffer((kept, channels, kernel[0], kernel[1]), "int32"),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        codes = T.alloc_buffer((row_tiles * steps * TILE,), "int32")
        inside = T.alloc_buffer((kept, mask_panels * PANEL), "int32")
        T.evaluate(request_tiles())
        for c in T.parallel(kept):
            expand_codes(planes, codes, c // rows, c % rows)
        for job in T.parallel((mask_panels + width - 1) // width):
            columns = T.alloc_buffer((RUN * width * TILE,), "int32")
            sums = T.alloc_buffer((groups * TILES * TILE,), "int32")
            configure_tiles(rows)
            multiply_block(codes, positions, columns, sums, panels + job * width, panels + mask_panels - 1)
            for tile, r in T.grid(row_tiles, rows):
                for p in T.serial(T.min(width, mask_panels - job * width)):
                    inside[tile * rows + r, T.ramp((job * width + p) * PANEL, 1, PANEL)] = sums[
                        T.ramp(sums_at(tile, p, r), 1, TILE_LANES)
                    ]
            T.evaluate(release_tiles())
        for job in T.parallel(blocks * tap_jobs):
            columns = T.alloc_buffer((RUN * width * TILE,), "int32")
            sums = T.alloc_buffer((groups * TILES * TILE,), "int32")
            configure_tiles(rows)
            for t in T.serial(taps // tap_jobs):
                tap: T.let = job % tap_jobs * (taps // tap_jobs) + t
                block: T.let = job // tap_jobs * width
                multiply_block(codes, positions, columns, sums, tap * per_tap + block, (tap + 1) * per_tap - 1)
                for tile, r in T.grid(row_tiles, rows):
                    for p in T.serial(T.min(width, per_tap - block)):
                        for lane in T.vectorized(PANEL):
                            result[tile * rows + r, (block + p) * PANEL + lane, tap // kernel[1], tap % kernel[1]] = (
                                sums[sums_at(tile, p, r) + lane] * 2 - inside[tile * rows + r, tap]
                            )
            T.evaluate(release_tiles())

    return product
