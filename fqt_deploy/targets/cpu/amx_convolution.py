"""Convolution in tile registers: an image of bytes in the cache, sixteen rows at a time, times expanded weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.ops.packed_words import PANEL, WORD
from fqt_deploy.targets.cpu.amx_tiles import (
    TILE,
    TILE_DEPTH,
    TILE_LANES,
    TILE_ROWS,
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
from fqt_deploy.targets.cpu.register_tile import largest_divisor

IMAGE_BYTES = 1 << 19
"""Of one job: with the weights of its columns, less than the second-level cache."""
JOBS = 8
"""Independent pieces to cut a product into: work for that many threads."""
MINIMUM_ROWS = 8
"""Emptier tiles are slower than popcounts."""
POSITIONS = 1024
"""Of one job, where there are so many."""
POSITIONS_TO_EXPAND = 256
"""A job of so many positions expands the weights for itself, in its cache; smaller ones share what is expanded once."""
TILES = 4
"""Of sums: two of rows by two of columns, or one by four."""


@dataclass(frozen=True)
class TileConvolution:
    """A convolution of bytes with signs, over an image that may be a strided one spread out with zeros.

    Attributes:
        samples: N.
        source_hw: height and width of the operand.
        depth: channels of the operand, a multiple of 64.
        output_hw: height and width of the result.
        columns: channels of the result, a multiple of 32.
        kernel: KH, KW.
        stride: of the result's positions in the image.
        spread: distance of the operand's positions in the image; others are zero.
        border: zeros above and left of the image.
        flipped: the weight's last tap is applied first.
        instruction: multiplies the operand's bytes.
        operand: shape of the packed operand, [N, H, W, ..., words].
        row: int32x16, a row of bytes: of the operand, sample, row, column, and pair of words.
        result: shape of the result, [N, OH, OW, columns].
        dtype: of the result.
        position: where sample, row and column are in operand and result, if not there.
    """

    samples: int
    source_hw: list[int]
    depth: int
    output_hw: list[int]
    columns: int
    kernel: list[int]
    stride: list[int]
    spread: list[int]
    border: list[int]
    flipped: bool
    instruction: str
    operand: tuple[int, ...]
    row: Callable[[Any, Any, Any, Any, Any], Any]
    result: tuple[int, ...]
    dtype: str
    position: Callable[[Any, Any, Any], tuple[Any, Any, Any]] = lambda n, y, x: (n, y, x)


@dataclass(frozen=True)
class _Plan:
    """How a product is cut.

    Attributes:
        along_samples: the rows of a tile are one position of several samples, not several positions of a row. Taps that
            read no operand are then left out, and the image is stored without border.
        rows: of a tile.
        row_tiles: tiles of rows that are multiplied together, one or two; the more, the fewer columns.
        group: samples in a job.
        band: rows of the result in a job.
        blocks: blocks of ``TILES / row_tiles`` panels of columns in a job.
    """

    along_samples: bool
    rows: int
    row_tiles: int
    group: int
    band: int
    blocks: int


def tile_convolution(c: TileConvolution) -> tirx.PrimFunc | None:
    """The kernel of operand, packed weight and result; None if tiles would be too empty."""
    if c.depth % TILE_DEPTH or c.columns % (2 * PANEL):
        return None
    c = _flattened(c)
    plan = _along_row(c, TILE_ROWS) or _along_samples(c) or _along_row(c, MINIMUM_ROWS)
    return None if plan is None else _kernel(c, plan)


def _flattened(c: TileConvolution) -> TileConvolution:
    """A product of matrices as images of one row, of as many positions as fit the cache."""
    height, width = c.output_hw
    total = c.samples * height * width
    fitting = [r for r in range(1, total + 1) if total % r == 0 and r * c.depth <= IMAGE_BYTES]
    per_row = max((r for r in fitting if r % TILE_ROWS == 0), default=fitting[-1] if fitting else 0)
    is_product = c.kernel == c.stride == c.spread == [1, 1] and c.source_hw == c.output_hw
    if not is_product or not per_row:
        return c

    def position(n: Any, _: Any, x: Any) -> tuple[Any, Any, Any]:
        flat = n * per_row + x
        return flat // (height * width), flat // width % height, flat % width

    return replace(c, samples=total // per_row, source_hw=[1, per_row], output_hw=[1, per_row], position=position)


def _along_row(c: TileConvolution, least: int) -> _Plan | None:
    """Tiles of at least ``least`` rows of one sample, over as many bands of an image as fit the cache."""
    height, width = c.output_hw
    rows = largest_divisor(width, TILE_ROWS)
    fitting = [b for b in range(1, height + 1) if height % b == 0 and _image_bytes(c, b) <= IMAGE_BYTES]
    if rows < least or not fitting:
        return None
    return _cut(c, along_samples=False, rows=rows, group=1, band=fitting[-1], image_bytes=_image_bytes(c, fitting[-1]))


def _along_samples(c: TileConvolution) -> _Plan | None:
    """Tiles of sixteen samples, over the whole image."""
    image_bytes = c.source_hw[0] * c.source_hw[1] * c.depth
    # two tiles of rows for two of columns are fewer loads than one for four
    groups = [g for g in (2 * TILE_ROWS, TILE_ROWS) if c.samples % g == 0 and g * image_bytes <= IMAGE_BYTES]
    if not groups:
        return None
    plan = _cut(c, along_samples=True, rows=TILE_ROWS, group=groups[0], band=c.output_hw[0], image_bytes=image_bytes)
    # two tiles must be of one position
    return None if plan.row_tiles == 2 and plan.group % (2 * plan.rows) else plan


def _cut(c: TileConvolution, *, along_samples: bool, rows: int, group: int, band: int, image_bytes: int) -> _Plan:
    """As many samples in a job as make reading the weight worth it, and columns apart where there are few jobs."""
    positions = band * c.output_hw[1]
    while group * positions < POSITIONS and c.samples % (2 * group) == 0 and 2 * group * image_bytes <= IMAGE_BYTES:
        group *= 2
    tiles = group // rows if along_samples else group * positions // rows
    row_tiles = 1 if tiles % 2 and c.columns % (TILES * PANEL) == 0 else 2
    all_blocks = c.columns // (TILES // row_tiles * PANEL)
    pieces = c.samples // group * (c.output_hw[0] // band)
    split = next((s for s in range(1, all_blocks + 1) if all_blocks % s == 0 and s * pieces >= JOBS), all_blocks)
    return _Plan(along_samples, rows, row_tiles, group, band, all_blocks // split)


def _image_bytes(c: TileConvolution, band: int) -> int:
    return _extent(band, c.stride[0], c.kernel[0]) * _extent(c.output_hw[1], c.stride[1], c.kernel[1]) * c.depth


def _extent(positions: int, stride: int, kernel: int) -> int:
    return (positions - 1) * stride + kernel


def _kernel(c: TileConvolution, plan: _Plan) -> tirx.PrimFunc:
    if plan.along_samples:
        image_height, image_width = c.source_hw
    else:
        image_height = _extent(plan.band, c.stride[0], c.kernel[0])
        image_width = _extent(c.output_hw[1], c.stride[1], c.kernel[1])
    lanes, pairs = c.depth // 4, c.depth // TILE_DEPTH
    # the rows of a tile along samples would else meet in the same set of the first-level cache
    per_sample = image_height * image_width * lanes + (TILE_LANES if plan.along_samples else 0)
    taps, words, panels = c.kernel[0] * c.kernel[1], c.depth // WORD, TILES // plan.row_tiles
    bands, all_blocks = c.output_hw[0] // plan.band, c.columns // (panels * PANEL)
    block_jobs, block_lanes = all_blocks // plan.blocks, taps * pairs * panels * TILE
    jobs = c.samples // plan.group * bands * block_jobs
    per_row = c.output_hw[1] if plan.along_samples else c.output_hw[1] // plan.rows
    sample_tiles = plan.group // plan.rows if plan.along_samples else plan.group
    tiles = sample_tiles * plan.band * per_row
    row_bytes = 4 * per_sample if plan.along_samples else c.stride[1] * c.depth

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
        if plan.along_samples:
            position = tile // sample_tiles
            return tile % sample_tiles * plan.rows + row, position // per_row, position % per_row
        return tile // (per_row * plan.band), tile // per_row % plan.band, tile % per_row * plan.rows + row

    def reads(tile: Any, kh: Any, kw: Any) -> Any:
        """Whether a tap of a tile reads anything."""
        _, y, x = place(tile, 0)
        if plan.along_samples:
            return tirx.all(source(0, y, kh)[0], source(1, x, kw)[0])
        return tirx.const(True, "bool")

    def tile_begin(tile: Any, kh: Any, kw: Any) -> Any:
        """Where in the image a tap of a tile begins."""
        g, y, x = place(tile, 0)
        h, v = y * c.stride[0] + kh, x * c.stride[1] + kw
        if plan.along_samples:
            h, v = source(0, y, kh)[1], source(1, x, kw)[1]
        return image_at(g, h, v)

    @T.macro
    def expand_image(operand: Any, image: Any, sample: Any, first: Any) -> None:
        """Rows of bytes of a group of samples; those that do not exist are zero."""
        for g, h, v in T.grid(plan.group, image_height, image_width):
            at: T.let = image_at(g, h, v)
            if plan.along_samples:
                for u in T.serial(pairs):
                    image[T.ramp(at + u * TILE_LANES, 1, TILE_LANES)] = c.row(operand, *c.position(sample + g, h, v), u)
            else:
                if source(0, first, h)[0] and source(1, 0, v)[0]:
                    for u in T.serial(pairs):
                        image[T.ramp(at + u * TILE_LANES, 1, TILE_LANES)] = c.row(
                            operand, *c.position(sample + g, source(0, first, h)[1], source(1, 0, v)[1]), u
                        )
                else:
                    for u in T.serial(pairs):
                        image[T.ramp(at + u * TILE_LANES, 1, TILE_LANES)] = T.broadcast(0, TILE_LANES)

    @T.macro
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

    @T.macro
    def multiply(image: Any, columns: Any, begin: Any, tile: Any, second: Any, kh: Any, kw: Any) -> None:
        """One tap of one or two tiles of rows."""
        for u in T.serial(pairs):
            if plan.row_tiles == 1:
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

    @T.macro
    def finish(result: Any, sums: Any, sample: Any, first: Any, tile: Any, number: Any, row: Any, block: Any) -> None:
        """One row of a tile to its place in the result."""
        g, y, x = place(tile, row)
        n, h, v = c.position(sample + g, first + y, x)
        result[n, h, v, T.ramp(block * panels * PANEL, 1, panels * PANEL)] = T.cast(
            sums[T.ramp((number * TILE + row * TILE_LANES) * panels, 1, panels * TILE_LANES)],
            f"{c.dtype}x{panels * PANEL}",
        )

    @T.macro
    def multiply_block(
        image: Any, columns: Any, begin: Any, sums: Any, result: Any, sample: Any, first: Any, block: Any
    ) -> None:
        """All tiles of rows of a job times one block of columns."""
        for t in T.serial((tiles + plan.row_tiles - 1) // plan.row_tiles):
            tile: T.let = t * plan.row_tiles
            second: T.let = T.min(tile + 1, tiles - 1)
            clear_sums()
            for kh, kw in T.grid(c.kernel[0], c.kernel[1]):
                if reads(tile, kh, kw):
                    multiply(image, columns, begin, tile, second, kh, kw)
            store_sums(sums, 0, panels)
            for r in T.serial(plan.rows):
                finish(result, sums, sample, first, tile, 0, r, block)
                if plan.row_tiles == 2:
                    finish(result, sums, sample, first, second, 1, r, block)

    @T.prim_func(s_tir=True)
    def with_own_weights(
        operand: T.Buffer(c.operand, "int32"),
        weight: T.Buffer((c.columns // PANEL, taps * words, PANEL), "int32"),
        result: T.Buffer(c.result, c.dtype),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        T.evaluate(request_tiles())
        for job in T.parallel(jobs):
            image = T.alloc_buffer((plan.group * per_sample,), "int32")
            columns = T.alloc_buffer((block_lanes,), "int32")
            sums = T.alloc_buffer((TILES * TILE,), "int32")
            sample: T.let = job // (bands * block_jobs) * plan.group
            first: T.let = job // block_jobs % bands * plan.band
            configure_tiles(plan.rows)
            expand_image(operand, image, sample, first)
            for b in T.serial(plan.blocks):
                block: T.let = job % block_jobs * plan.blocks + b
                for tap in T.serial(taps):
                    expand_weight(weight, columns, 0, block, tap)
                multiply_block(image, columns, 0, sums, result, sample, first, block)
            T.evaluate(release_tiles())

    @T.prim_func(s_tir=True)
    def with_shared_weights(
        operand: T.Buffer(c.operand, "int32"),
        weight: T.Buffer((c.columns // PANEL, taps * words, PANEL), "int32"),
        result: T.Buffer(c.result, c.dtype),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        columns = T.alloc_buffer((all_blocks * block_lanes,), "int32")
        T.evaluate(request_tiles())
        for part in T.parallel(all_blocks * taps):
            expand_weight(weight, columns, part // taps * block_lanes, part // taps, part % taps)
        for job in T.parallel(jobs):
            image = T.alloc_buffer((plan.group * per_sample,), "int32")
            sums = T.alloc_buffer((TILES * TILE,), "int32")
            sample: T.let = job // (bands * block_jobs) * plan.group
            first: T.let = job // block_jobs % bands * plan.band
            configure_tiles(plan.rows)
            expand_image(operand, image, sample, first)
            for b in T.serial(plan.blocks):
                block: T.let = job % block_jobs * plan.blocks + b
                multiply_block(image, columns, block * block_lanes, sums, result, sample, first, block)
            T.evaluate(release_tiles())

    own_weights = plan.group * plan.band * c.output_hw[1] >= POSITIONS_TO_EXPAND
    return with_own_weights if own_weights else with_shared_weights
