"""Weight-gradient product in tile registers: rows of codes over positions, times columns of input bits.

The codes become bytes once, for all columns; the bits of a few columns become bytes for a run of positions at a time,
and the sums over a run are added to those of the runs before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.ops.lib.packed_words import PANEL, panel_count
from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.amx_tiles import (
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
from fqt_deploy.targets.cpu.products.register_tile import arguments_of, largest_divisor

MINIMUM_ROWS = 8
"""Emptier tiles are slower than tables."""
RUN = 8
"""Products along positions before the sums are put away: columns of 16 or 32 KB are alive at once."""
JOBS = 8
"""Independent pieces to cut a product into, where it is large enough: work for that many threads."""
TILES = 4
"""Of sums: two of rows by two of columns, or one by four."""


@dataclass(frozen=True)
class _Product:
    """The product's shape, and how it is cut.

    Attributes:
        words: packed words along positions.
        bits: planes of a code.
        kept: channels of the gradient.
        channels: of the input.
        kernel: KH, KW.
        rows: kept channels in a tile.
    """

    words: int
    bits: int
    kept: int
    channels: int
    kernel: list[int]
    rows: int

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    @property
    def per_tap(self) -> int:
        """Panels of a tap."""
        return self.channels // PANEL

    @property
    def panels(self) -> int:
        """Panels of input bits."""
        return self.taps * self.per_tap

    @property
    def mask_panels(self) -> int:
        """Panels that say which positions lie inside, a column for each tap; they come last."""
        return panel_count(self.taps)

    @property
    def steps(self) -> int:
        """Products along positions."""
        return -(-self.words // 2)

    @property
    def row_tiles(self) -> int:
        return self.kept // self.rows

    @property
    def together(self) -> int:
        """Tiles of rows that are multiplied at once: a group."""
        return 2 if self.row_tiles % 2 == 0 else 1

    @property
    def groups(self) -> int:
        return self.row_tiles // self.together

    @property
    def width(self) -> int:
        """Panels that are multiplied at once."""
        return TILES // self.together

    @property
    def blocks(self) -> int:
        """Of so many panels, in a tap."""
        return -(-self.per_tap // self.width)

    @property
    def tap_jobs(self) -> int:
        """Taps of a channel are neighbours in the result: one job writes them all, if all jobs have channels."""
        return next((t for t in range(1, self.taps + 1) if self.taps % t == 0 and t * self.blocks >= JOBS), self.taps)

    def sums_begin(self, tile: Any, p: Any, r: Any) -> Any:
        """Where the sums of a row of a tile with a panel of the block begin."""
        in_group = (tile % self.together * TILE_ROWS + r) * self.width + p
        return tile // self.together * TILES * TILE + in_group * TILE_LANES


@script.macro
def _expand_codes(s: _Product, planes: Any, codes: Any, tile: Any, r: Any) -> None:
    """All bytes of a kept channel; past the last word they are zero."""
    for step in T.serial(s.words // 2):
        codes[T.ramp((tile * s.steps + step) * TILE + r * TILE_LANES, 1, TILE_LANES)] = row_of_codes(
            [
                neighbours(planes[2 * step, p, tile * s.rows + r], planes[2 * step + 1, p, tile * s.rows + r])
                for p in range(s.bits)
            ]
        )
    if s.words % 2 == 1:
        codes[T.ramp((tile * s.steps + s.steps - 1) * TILE + r * TILE_LANES, 1, TILE_LANES)] = row_of_codes(
            [neighbours(planes[s.words - 1, p, tile * s.rows + r], None) for p in range(s.bits)]
        )


@script.macro
def _expand_positions(s: _Product, positions: Any, columns: Any, run: Any, first: Any, last: Any) -> None:
    """Bytes of a block of panels along one run."""
    for step in T.serial(T.min(RUN, s.steps - run * RUN)):
        for p in T.unroll(s.width):
            panel: T.let = T.min(first + p, last)
            word: T.let = 2 * (run * RUN + step)
            expand_columns(
                columns,
                (step * s.width + p) * TILE,
                bits_table(),
                positions[panel, word, T.ramp(0, 1, PANEL)],
                positions[panel, T.min(word + 1, s.words - 1), T.ramp(0, 1, PANEL)],
            )


@script.macro
def _multiply_block(s: _Product, codes: Any, positions: Any, columns: Any, sums: Any, first: Any, last: Any) -> None:
    """Sums of every group of row tiles with ``width`` panels from ``first`` on; past ``last`` they mean nothing."""
    for run in T.serial((s.steps + RUN - 1) // RUN):
        _expand_positions(s, positions, columns, run, first, last)
        for group in T.serial(s.groups):
            if run == 0:
                clear_sums()
            else:
                load_sums(sums, group * TILES * TILE, s.width)
            for step in T.serial(T.min(RUN, s.steps - run * RUN)):
                row: T.let = (group * s.together * s.steps + run * RUN + step) * TILE
                at: T.let = step * s.width * TILE
                if s.together == 2:
                    multiply_two_by_two(codes, row, row + s.steps * TILE, 4 * TILE_LANES, columns, at, UNSIGNED_ROWS)
                else:
                    multiply_one_by_four(codes, row, 4 * TILE_LANES, columns, at, UNSIGNED_ROWS)
            store_sums(sums, group * TILES * TILE, s.width)


def _kernel(s: _Product) -> tirx.PrimFunc:
    """Codes, the sums of codes inside each tap, then blocks of panels."""

    @script.prim_func(s_tir=True)
    def product(
        planes: T.Buffer((s.words, s.bits, s.kept), "int32"),
        positions: T.Buffer((s.panels + s.mask_panels, s.words, PANEL), "int32"),
        result: T.Buffer((s.kept, s.channels, s.kernel[0], s.kernel[1]), "int32"),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        codes = T.alloc_buffer((s.row_tiles * s.steps * TILE,), "int32")
        inside = T.alloc_buffer((s.kept, s.mask_panels * PANEL), "int32")
        T.evaluate(request_tiles())
        for c in T.parallel(s.kept):
            _expand_codes(s, planes, codes, c // s.rows, c % s.rows)
        for job in T.parallel((s.mask_panels + s.width - 1) // s.width):
            columns = T.alloc_buffer((RUN * s.width * TILE,), "int32")
            sums = T.alloc_buffer((s.groups * TILES * TILE,), "int32")
            configure_tiles(s.rows)
            _multiply_block(s, codes, positions, columns, sums, s.panels + job * s.width, s.panels + s.mask_panels - 1)
            for tile, r in T.grid(s.row_tiles, s.rows):
                for p in T.serial(T.min(s.width, s.mask_panels - job * s.width)):
                    inside[tile * s.rows + r, T.ramp((job * s.width + p) * PANEL, 1, PANEL)] = sums[
                        T.ramp(s.sums_begin(tile, p, r), 1, TILE_LANES)
                    ]
            T.evaluate(release_tiles())
        for job in T.parallel(s.blocks * s.tap_jobs):
            columns = T.alloc_buffer((RUN * s.width * TILE,), "int32")
            sums = T.alloc_buffer((s.groups * TILES * TILE,), "int32")
            configure_tiles(s.rows)
            for t in T.serial(s.taps // s.tap_jobs):
                tap: T.let = job % s.tap_jobs * (s.taps // s.tap_jobs) + t
                block: T.let = job // s.tap_jobs * s.width
                _multiply_block(s, codes, positions, columns, sums, tap * s.per_tap + block, (tap + 1) * s.per_tap - 1)
                for tile, r in T.grid(s.row_tiles, s.rows):
                    for p in T.serial(T.min(s.width, s.per_tap - block)):
                        for lane in T.vectorized(PANEL):
                            result[
                                tile * s.rows + r, (block + p) * PANEL + lane, tap // s.kernel[1], tap % s.kernel[1]
                            ] = sums[s.sums_begin(tile, p, r) + lane] * 2 - inside[tile * s.rows + r, tap]
            T.evaluate(release_tiles())

    return product


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
        return None if rows < MINIMUM_ROWS else _kernel(_Product(words, bits, kept, channels, kernel, rows))
