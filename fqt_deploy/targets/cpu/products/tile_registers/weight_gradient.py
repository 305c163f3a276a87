"""Weight-gradient product in tile registers: rows of codes over positions, times columns of input bits or codes.

The gradient's codes become bytes once, for all columns; a few columns become bytes for a run of positions at a time,
and the sums over a run are added to those of the runs before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.ops.lib.packed_words import PANEL
from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.form import NO_CHOICE, TILE_REGISTERS
from fqt_deploy.targets.cpu.products.tile_registers.registers import (
    MAXIMUM_BITS,
    TILE,
    TILE_LANES,
    TILE_ROWS,
    UNSIGNED,
    clear_sums,
    configure_tiles,
    expand_code_columns,
    load_sums,
    multiply_one_by_four,
    multiply_two_by_two,
    neighbours,
    release_tiles,
    request_tiles,
    row_of_codes,
    store_sums,
)
from fqt_deploy.targets.cpu.register_tile import largest_divisor
from fqt_deploy.targets.products import BitWeightGradient
from fqt_deploy.targets.tuning_log import Tile

MINIMUM_ROWS = 8
"""Least rows of a tile: emptier tiles are slower than tables."""
RUN = 8
"""Number of products along positions before the sums are put away: columns of 16 or 32 KB are alive at once."""
JOBS = 8
"""Number of independent pieces to cut a product into, where it is large enough: work for that many threads."""
TILES = 4
"""Number of tiles of sums: two of rows by two of columns, or one by four."""


class TileWeightGradient:
    """The weight-gradient product in tile registers: codes, their sums inside each tap, then blocks of panels."""

    name: ClassVar[str] = TILE_REGISTERS

    def accepts(self, product: BitWeightGradient, features: CpuFeatures) -> bool:
        """Whether the product has whole panels and codes of at most a byte, and fills the tiles of the processor."""
        fits = product.has_whole_panels and product.bits <= MAXIMUM_BITS
        return features.has_amx and fits and largest_divisor(product.kept, TILE_ROWS) >= MINIMUM_ROWS

    def tiles(self, product: BitWeightGradient, features: CpuFeatures) -> tuple[Tile, ...]:
        """The only choice: tiles are as large as registers."""
        return NO_CHOICE

    def kernel(self, product: BitWeightGradient, tile: Tile, features: CpuFeatures) -> tirx.PrimFunc:
        """The kernel, with the largest tiles of kept channels that divide them."""
        return _kernel(_Cut(product, largest_divisor(product.kept, TILE_ROWS)))


@dataclass(frozen=True)
class _Cut:
    """A product and how it is cut.

    Attributes:
        product: what is computed.
        rows: kept channels in a tile.
    """

    product: BitWeightGradient
    rows: int

    @property
    def steps(self) -> int:
        """Number of products along the positions, two words of positions each."""
        return -(-self.product.words // 2)

    @property
    def row_tiles(self) -> int:
        return self.product.kept // self.rows

    @property
    def together(self) -> int:
        """Number of tiles of rows that are multiplied at once: a group."""
        return 2 if self.row_tiles % 2 == 0 else 1

    @property
    def groups(self) -> int:
        return self.row_tiles // self.together

    @property
    def width(self) -> int:
        """Number of panels that are multiplied at once."""
        return TILES // self.together

    @property
    def blocks(self) -> int:
        """Number of blocks of ``width`` panels in a plane of a tap."""
        return -(-self.tap_panels // self.width)

    @property
    def tap_panels(self) -> int:
        """Number of panels in a plane of a tap."""
        return self.product.tap_panels // self.product.planes

    @property
    def tap_jobs(self) -> int:
        """Number of jobs that the taps are divided into: as few as give all threads work."""
        return next(
            (t for t in range(1, self.product.taps + 1) if self.product.taps % t == 0 and t * self.blocks >= JOBS),
            self.product.taps,
        )

    @property
    def taps(self) -> int:
        """Number of taps in a job."""
        return self.product.taps // self.tap_jobs

    @property
    def sums(self) -> int:
        """Number of 32-bit lanes that the sums of all kept channels with a block of panels take."""
        return self.groups * TILES * TILE

    def words_of(self, positions: Any, panel: Any, word: Any, planes: int) -> list[Any]:
        """One word of each row of a panel, int32x16, by plane: of a panel of channels, or one of masks."""
        places = [self.product.plane_panel(panel, plane) for plane in range(planes)] if planes > 1 else [panel]
        return [positions[place, word, T.ramp(0, 1, PANEL)] for place in places]

    def sums_begin(self, tile: Any, p: Any, r: Any) -> Any:
        """The place where the sums of row ``r`` of a tile with panel ``p`` of the block begin."""
        in_group = (tile % self.together * TILE_ROWS + r) * self.width + p
        return tile // self.together * TILES * TILE + in_group * TILE_LANES


@script.macro
def _expand_codes(s: _Cut, planes: Any, codes: Any, tile: Any, r: Any) -> None:
    """Expand the codes of a kept channel to bytes; past the last word they are zero."""
    for step in T.serial(s.product.words // 2):
        codes[T.ramp((tile * s.steps + step) * TILE + r * TILE_LANES, 1, TILE_LANES)] = row_of_codes(
            [
                neighbours(planes[2 * step, p, tile * s.rows + r], planes[2 * step + 1, p, tile * s.rows + r])
                for p in range(s.product.bits)
            ]
        )
    if s.product.words % 2 == 1:
        codes[T.ramp((tile * s.steps + s.steps - 1) * TILE + r * TILE_LANES, 1, TILE_LANES)] = row_of_codes(
            [neighbours(planes[s.product.words - 1, p, tile * s.rows + r], None) for p in range(s.product.bits)]
        )


@script.macro
def _expand_positions(s: _Cut, positions: Any, columns: Any, run: Any, first: Any, last: Any, planes: Any) -> None:
    """Expand the positions of a block of panels, of so many planes, along one run to bytes."""
    for step in T.serial(T.min(RUN, s.steps - run * RUN)):
        for p in T.unroll(s.width):
            word: T.let = 2 * (run * RUN + step)
            expand_code_columns(
                columns,
                (step * s.width + p) * TILE,
                s.words_of(positions, T.min(first + p, last), word, planes),
                s.words_of(positions, T.min(first + p, last), T.min(word + 1, s.product.words - 1), planes),
            )


@script.macro
def _multiply_block(
    s: _Cut, codes: Any, positions: Any, columns: Any, sums: Any, begin: Any, first: Any, last: Any, planes: Any
) -> None:
    """Sums, from ``begin`` on, of all row tiles with ``width`` panels from ``first`` on; past ``last`` meaningless."""
    for run in T.serial((s.steps + RUN - 1) // RUN):
        _expand_positions(s, positions, columns, run, first, last, planes)
        for group in T.serial(s.groups):
            if run == 0:
                clear_sums()
            else:
                load_sums(sums, begin + group * TILES * TILE, s.width)
            for step in T.serial(T.min(RUN, s.steps - run * RUN)):
                row: T.let = (group * s.together * s.steps + run * RUN + step) * TILE
                at: T.let = step * s.width * TILE
                if s.together == 2:
                    multiply_two_by_two(codes, row, row + s.steps * TILE, 4 * TILE_LANES, columns, at, UNSIGNED)
                else:
                    multiply_one_by_four(codes, row, 4 * TILE_LANES, columns, at, UNSIGNED)
            store_sums(sums, begin + group * TILES * TILE, s.width)


@script.macro
def _write_sum(
    s: _Cut, sums: Any, inside: Any, result: Any, first_tap: Any, block: Any, tile: Any, r: Any, panel: Any, lane: Any,
    t: Any,
) -> None:  # fmt: skip
    """Write the sum of levels of one channel and tap."""
    row: T.let = tile * s.rows + r
    tap: T.let = first_tap + t
    result[row, (block + panel) * PANEL + lane, s.product.tap(tap)[0], s.product.tap(tap)[1]] = s.product.level(
        sums[t * s.sums + s.sums_begin(tile, panel, r) + lane], inside[row, tap]
    )


@script.macro
def _write_block(s: _Cut, sums: Any, inside: Any, result: Any, first_tap: Any, block: Any) -> None:
    """Write the sums of levels in a block of panels: of each channel those of all taps of a job, one after another."""
    for tile, r in T.grid(s.row_tiles, s.rows):
        for panel in T.serial(T.min(s.width, s.tap_panels - block)):
            if s.taps == 1:
                for lane in T.vectorized(PANEL):
                    _write_sum(s, sums, inside, result, first_tap, block, tile, r, panel, lane, 0)
            else:
                for lane, t in T.grid(PANEL, s.taps):
                    _write_sum(s, sums, inside, result, first_tap, block, tile, r, panel, lane, t)


def _kernel(s: _Cut) -> tirx.PrimFunc:
    """The TIR function of the gradient that is cut as ``s`` says."""
    p = s.product

    @script.prim_func(s_tir=True)
    def product(
        planes: T.Buffer((p.words, p.bits, p.kept), "int32"),
        positions: T.Buffer((p.panels, p.words, PANEL), "int32"),
        result: T.Buffer((p.kept, p.results, p.kernel[0], p.kernel[1]), "int32"),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        codes = T.alloc_buffer((s.row_tiles * s.steps * TILE,), "int32")
        inside = T.alloc_buffer((p.kept, p.mask_panels * PANEL), "int32")
        T.evaluate(request_tiles())
        for c in T.parallel(p.kept):
            _expand_codes(s, planes, codes, c // s.rows, c % s.rows)
        for job in T.parallel((p.mask_panels + s.width - 1) // s.width):
            columns = T.alloc_buffer((RUN * s.width * TILE,), "int32")
            sums = T.alloc_buffer((s.sums,), "int32")
            configure_tiles(s.rows)
            first: T.let = p.channel_panels + job * s.width
            _multiply_block(s, codes, positions, columns, sums, 0, first, p.panels - 1, 1)
            for tile, r in T.grid(s.row_tiles, s.rows):
                for panel in T.serial(T.min(s.width, p.mask_panels - job * s.width)):
                    inside[tile * s.rows + r, T.ramp((job * s.width + panel) * PANEL, 1, PANEL)] = sums[
                        T.ramp(s.sums_begin(tile, panel, r), 1, TILE_LANES)
                    ]
            T.evaluate(release_tiles())
        for job in T.parallel(s.blocks * s.tap_jobs):
            columns = T.alloc_buffer((RUN * s.width * TILE,), "int32")
            sums = T.alloc_buffer((s.taps * s.sums,), "int32")
            configure_tiles(s.rows)
            block: T.let = job // s.tap_jobs * s.width
            first_tap: T.let = job % s.tap_jobs * s.taps
            for t in T.serial(s.taps):
                first: T.let = (first_tap + t) * s.tap_panels
                last: T.let = first + s.tap_panels - 1
                _multiply_block(s, codes, positions, columns, sums, t * s.sums, first + block, last, p.planes)
            _write_block(s, sums, inside, result, first_tap, block)
            T.evaluate(release_tiles())

    return product
