"""Convolution in tile registers: an image of bytes in the cache, sixteen rows at a time, times expanded weights."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.ops.packed_words import PANEL, WORD
from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.amx_convolution_cut import TILES, Cut, TileConvolution, cut_convolution, image_extent
from fqt_deploy.targets.cpu.amx_tiles import (
    TILE,
    TILE_DEPTH,
    TILE_LANES,
    clear_sums,
    configure_tiles,
    expand_columns,
    multiply_one_by_four,
    multiply_two_by_two,
    release_tiles,
    request_tiles,
    signs_table,
    store_sums,
)

POSITIONS_TO_EXPAND = 256
"""A job of so many positions expands the weights for itself, in its cache; smaller ones share what is expanded once."""


def tile_convolution(c: TileConvolution) -> tirx.PrimFunc | None:
    """The kernel of operand, packed weight and result; None if tiles would be too empty."""
    cut = cut_convolution(c)
    return None if cut is None else _kernel(c, cut)


def _kernel(c: TileConvolution, cut: Cut) -> tirx.PrimFunc:
    if cut.along_samples:
        image_height, image_width = c.source_hw
    else:
        image_height = image_extent(cut.band, c.stride[0], c.kernel[0])
        image_width = image_extent(c.output_hw[1], c.stride[1], c.kernel[1])
    lanes, pairs = c.depth // 4, c.depth // TILE_DEPTH
    # the rows of a tile along samples would else meet in the same set of the first-level cache
    per_sample = image_height * image_width * lanes + (TILE_LANES if cut.along_samples else 0)
    taps, words, panels = c.kernel[0] * c.kernel[1], c.depth // WORD, TILES // cut.row_tiles
    bands, all_blocks = c.output_hw[0] // cut.band, c.columns // (panels * PANEL)
    block_jobs, block_lanes = all_blocks // cut.blocks, taps * pairs * panels * TILE
    jobs = c.samples // cut.group * bands * block_jobs
    per_row = c.output_hw[1] if cut.along_samples else c.output_hw[1] // cut.rows
    sample_tiles = cut.group // cut.rows if cut.along_samples else cut.group
    tiles = sample_tiles * cut.band * per_row
    row_bytes = 4 * per_sample if cut.along_samples else c.stride[1] * c.depth

    def image_at(g: Any, h: Any, v: Any) -> Any:
        """Where in the image a position begins."""
        return g * per_sample + (h * image_width + v) * lanes

    def source(axis: int, position: Any, tap: Any) -> tuple[Any, Any]:
        """Whether a tap of a position of the result reads the operand along an axis, and where."""
        at, step = position * c.stride[axis] + tap - c.border[axis], c.spread[axis]
        inside = tirx.all(at >= 0, at < c.source_hw[axis] * step)
        return (inside, at) if step == 1 else (tirx.all(inside, at % step == 0), at // step)

    def place(tile: Any, row: Any) -> tuple[Any, Any, Any]:
        """Sample of the job, row of the band and column of one row of a tile; tiles of one position are neighbours."""
        if cut.along_samples:
            position = tile // sample_tiles
            return tile % sample_tiles * cut.rows + row, position // per_row, position % per_row
        return tile // (per_row * cut.band), tile // per_row % cut.band, tile % per_row * cut.rows + row

    def reads(tile: Any, kh: Any, kw: Any) -> Any:
        """Whether a tap of a tile reads anything."""
        _, y, x = place(tile, 0)
        if cut.along_samples:
            return tirx.all(source(0, y, kh)[0], source(1, x, kw)[0])
        return tirx.const(True, "bool")

    def tile_begin(tile: Any, kh: Any, kw: Any) -> Any:
        """Where in the image a tap of a tile begins."""
        g, y, x = place(tile, 0)
        h, v = y * c.stride[0] + kh, x * c.stride[1] + kw
        if cut.along_samples:
            h, v = source(0, y, kh)[1], source(1, x, kw)[1]
        return image_at(g, h, v)

    @script.macro
    def expand_image(operand: Any, image: Any, sample: Any, first: Any) -> None:
        """Rows of bytes of a group of samples; those that do not exist are zero."""
        for g, h, v in T.grid(cut.group, image_height, image_width):
            at: T.let = image_at(g, h, v)
            if cut.along_samples:
                for u in T.serial(pairs):
                    image[T.ramp(at + u * TILE_LANES, 1, TILE_LANES)] = c.row(operand, sample + g, h, v, u)
            else:
                if source(0, first, h)[0] and source(1, 0, v)[0]:
                    for u in T.serial(pairs):
                        image[T.ramp(at + u * TILE_LANES, 1, TILE_LANES)] = c.row(
                            operand, sample + g, source(0, first, h)[1], source(1, 0, v)[1], u
                        )
                else:
                    for u in T.serial(pairs):
                        image[T.ramp(at + u * TILE_LANES, 1, TILE_LANES)] = T.broadcast(0, TILE_LANES)

    @script.macro
    def expand_weight(weight: Any, columns: Any, begin: Any, block: Any, tap: Any) -> None:
        """Tiles of columns of one tap, for one block; ``begin`` is where those of the block begin."""
        for u, p in T.grid(pairs, panels):
            word: T.let = (taps - 1 - tap if c.flipped else tap) * words + 2 * u
            expand_columns(
                columns,
                begin + ((tap * pairs + u) * panels + p) * TILE,
                signs_table(),
                weight[block * panels + p, word, T.ramp(0, 1, PANEL)],
                weight[block * panels + p, word + 1, T.ramp(0, 1, PANEL)],
            )

    @script.macro
    def multiply(image: Any, columns: Any, begin: Any, tile: Any, second: Any, kh: Any, kw: Any) -> None:
        """One tap of one or two tiles of rows."""
        for u in T.serial(pairs):
            if cut.row_tiles == 1:
                multiply_one_by_four(
                    image,
                    tile_begin(tile, kh, kw) + u * TILE_LANES,
                    row_bytes,
                    columns,
                    begin + ((kh * c.kernel[1] + kw) * pairs + u) * panels * TILE,
                    c.instruction,
                )
            else:
                multiply_two_by_two(
                    image,
                    tile_begin(tile, kh, kw) + u * TILE_LANES,
                    tile_begin(second, kh, kw) + u * TILE_LANES,
                    row_bytes,
                    columns,
                    begin + ((kh * c.kernel[1] + kw) * pairs + u) * panels * TILE,
                    c.instruction,
                )

    @script.macro
    def finish(result: Any, sums: Any, sample: Any, first: Any, tile: Any, number: Any, row: Any, block: Any) -> None:
        """One row of a tile to its place in the result."""
        g, y, x = place(tile, row)
        result[sample + g, first + y, x, T.ramp(block * panels * PANEL, 1, panels * PANEL)] = T.cast(
            sums[T.ramp((number * TILE + row * TILE_LANES) * panels, 1, panels * TILE_LANES)],
            f"{c.dtype}x{panels * PANEL}",
        )

    @script.macro
    def multiply_block(
        image: Any, columns: Any, begin: Any, sums: Any, result: Any, sample: Any, first: Any, block: Any
    ) -> None:
        """All tiles of rows of a job times one block of columns."""
        for t in T.serial((tiles + cut.row_tiles - 1) // cut.row_tiles):
            tile: T.let = t * cut.row_tiles
            second: T.let = T.min(tile + 1, tiles - 1)
            clear_sums()
            for kh, kw in T.grid(c.kernel[0], c.kernel[1]):
                if reads(tile, kh, kw):
                    multiply(image, columns, begin, tile, second, kh, kw)
            store_sums(sums, 0, panels)
            for r in T.serial(cut.rows):
                finish(result, sums, sample, first, tile, 0, r, block)
                if cut.row_tiles == 2:
                    finish(result, sums, sample, first, second, 1, r, block)

    @script.prim_func(s_tir=True)
    def with_own_weights(
        operand: T.Buffer(c.operand, "int32"),
        weight: T.Buffer((c.columns // PANEL, taps * words, PANEL), "int32"),
        result: T.Buffer((c.samples, c.output_hw[0], c.output_hw[1], c.columns), c.dtype),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        T.evaluate(request_tiles())
        for job in T.parallel(jobs):
            image = T.alloc_buffer((cut.group * per_sample,), "int32")
            columns = T.alloc_buffer((block_lanes,), "int32")
            sums = T.alloc_buffer((TILES * TILE,), "int32")
            sample: T.let = job // (bands * block_jobs) * cut.group
            first: T.let = job // block_jobs % bands * cut.band
            configure_tiles(cut.rows)
            expand_image(operand, image, sample, first)
            for b in T.serial(cut.blocks):
                block: T.let = job % block_jobs * cut.blocks + b
                for tap in T.serial(taps):
                    expand_weight(weight, columns, 0, block, tap)
                multiply_block(image, columns, 0, sums, result, sample, first, block)
            T.evaluate(release_tiles())

    @script.prim_func(s_tir=True)
    def with_shared_weights(
        operand: T.Buffer(c.operand, "int32"),
        weight: T.Buffer((c.columns // PANEL, taps * words, PANEL), "int32"),
        result: T.Buffer((c.samples, c.output_hw[0], c.output_hw[1], c.columns), c.dtype),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        columns = T.alloc_buffer((all_blocks * block_lanes,), "int32")
        T.evaluate(request_tiles())
        for part in T.parallel(all_blocks * taps):
            expand_weight(weight, columns, part // taps * block_lanes, part // taps, part % taps)
        for job in T.parallel(jobs):
            image = T.alloc_buffer((cut.group * per_sample,), "int32")
            sums = T.alloc_buffer((TILES * TILE,), "int32")
            sample: T.let = job // (bands * block_jobs) * cut.group
            first: T.let = job // block_jobs % bands * cut.band
            configure_tiles(cut.rows)
            expand_image(operand, image, sample, first)
            for b in T.serial(cut.blocks):
                block: T.let = job % block_jobs * cut.blocks + b
                multiply_block(image, columns, block * block_lanes, sums, result, sample, first, block)
            T.evaluate(release_tiles())

    own_weights = cut.group * cut.band * c.output_hw[1] >= POSITIONS_TO_EXPAND
    return with_own_weights if own_weights else with_shared_weights
