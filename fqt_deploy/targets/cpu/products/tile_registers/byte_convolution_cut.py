"""The cut of a convolution into tiles and into jobs for tile registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fqt_deploy.ops.lib.packed_words import PANEL
from fqt_deploy.targets.cpu.products.border_signs import BorderSigns
from fqt_deploy.targets.cpu.products.tile_registers.registers import TILE_DEPTH, TILE_ROWS
from fqt_deploy.targets.cpu.register_tile import largest_divisor
from fqt_deploy.targets.products import Extents, PackedConvolution

IMAGE_BYTES = 1 << 19
"""Upper bound of the bytes of one job's image: with the weights of its columns, less than the second-level cache."""
JOBS = 8
"""Number of independent pieces to cut a product into: work for that many threads."""
MINIMUM_ROWS = 8
"""Least rows of a tile: emptier tiles are slower than popcounts."""
POSITIONS = 1024
"""Number of positions that one job has at least, where there are so many."""
TILES = 4
"""Number of tiles of sums: two of rows by two of columns, or one by four."""


@dataclass(frozen=True)
class ByteConvolution:
    """A convolution of bytes with signs, over an image that may be a strided one spread out with zeros.

    Attributes:
        product: what is computed: samples, kernel, depth and columns.
        source_hw: height and width of the operand.
        output_hw: height and width of the result.
        stride: distance of the result's positions in the image.
        spread: distance of the operand's positions in the image; others are zero.
        border: zeros above and left of the image.
        flipped: the weight's last tap is applied first.
        instruction: multiplies the operand's bytes.
        operand: shape of the packed operand, [N, H, W, ..., words].
        row: int32x16, a row of bytes: of the operand, sample, row, column, and pair of words.
        dtype: type of the result.
        borders: what the largest code takes off, where bytes are codes of levels with signs; None where sums are the
            result.
    """

    product: PackedConvolution
    source_hw: Extents
    output_hw: Extents
    stride: Extents
    spread: Extents
    border: Extents
    flipped: bool
    instruction: str
    operand: tuple[int, ...]
    row: Callable[[Any, Any, Any, Any, Any], Any]
    dtype: str
    borders: BorderSigns | None = None

    @property
    def of_codes(self) -> bool:
        """Whether something is taken off the sums, by constants of borders."""
        return self.borders is not None

    @property
    def constants_shape(self) -> tuple[int, ...]:
        """Shape of the constants; none where nothing is taken off."""
        return () if self.borders is None else self.borders.shape

    def level(self, value: Any, constants: Any, position: tuple[Any, Any], lanes: Any) -> Any:
        """The result from sums of bytes: at a row and a column of it, for the columns ``lanes``."""
        if self.borders is None:
            return value
        return self.borders.level(value, constants, self.borders.kind(*position), lanes)


@dataclass(frozen=True)
class Cut:
    """The way to cut a product.

    Attributes:
        along_samples: the rows of a tile are one position of several samples, not several positions of a row. Taps that
            read no operand are then left out, and the image is stored without border.
        rows: number of rows in a tile.
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


def cut_convolution(c: ByteConvolution) -> Cut | None:
    """The cut into tiles of sixteen positions of a row, or else of sixteen samples; None if all are too empty."""
    # bytes of a single tap are used too seldom for an image of them: a product of matrices is cut in its own way
    if c.product.depth % TILE_DEPTH or c.product.columns % (2 * PANEL) or c.product.kernel == (1, 1):
        return None
    return _along_row(c, TILE_ROWS) or _along_samples(c) or _along_row(c, MINIMUM_ROWS)


def _along_row(c: ByteConvolution, least: int) -> Cut | None:
    """The cut into tiles of ``least`` or more positions of a row, in bands that fit the cache; None without any."""
    height, width = c.output_hw
    rows = largest_divisor(width, TILE_ROWS)
    fitting = [b for b in range(1, height + 1) if height % b == 0 and _image_bytes(c, b) <= IMAGE_BYTES]
    if rows < least or not fitting:
        return None
    return _cut(c, along_samples=False, rows=rows, group=1, band=fitting[-1], image_bytes=_image_bytes(c, fitting[-1]))


def _along_samples(c: ByteConvolution) -> Cut | None:
    """The cut into tiles of sixteen samples, over the whole image; None where samples or cache are too few."""
    image_bytes = c.source_hw[0] * c.source_hw[1] * c.product.depth
    # two tiles of rows for two of columns are fewer loads than one for four
    groups = [g for g in (2 * TILE_ROWS, TILE_ROWS) if c.product.samples % g == 0 and g * image_bytes <= IMAGE_BYTES]
    if not groups:
        return None
    plan = _cut(c, along_samples=True, rows=TILE_ROWS, group=groups[0], band=c.output_hw[0], image_bytes=image_bytes)
    # two tiles must be of one position
    return None if plan.row_tiles == 2 and plan.group % (2 * plan.rows) else plan


def _cut(c: ByteConvolution, *, along_samples: bool, rows: int, group: int, band: int, image_bytes: int) -> Cut:
    """The cut whose jobs have enough samples for reading the weight to pay; columns apart where jobs are few."""
    positions = band * c.output_hw[1]
    samples, columns = c.product.samples, c.product.columns
    while group * positions < POSITIONS and samples % (2 * group) == 0 and 2 * group * image_bytes <= IMAGE_BYTES:
        group *= 2
    tiles = group // rows if along_samples else group * positions // rows
    row_tiles = 1 if tiles % 2 and columns % (TILES * PANEL) == 0 else 2
    all_blocks = columns // (TILES // row_tiles * PANEL)
    pieces = samples // group * (c.output_hw[0] // band)
    split = next((s for s in range(1, all_blocks + 1) if all_blocks % s == 0 and s * pieces >= JOBS), all_blocks)
    return Cut(along_samples, rows, row_tiles, group, band, all_blocks // split)


def _image_bytes(c: ByteConvolution, band: int) -> int:
    (kernel_h, kernel_w), (down, across) = c.product.kernel, c.stride
    return image_extent(band, down, kernel_h) * image_extent(c.output_hw[1], across, kernel_w) * c.product.depth


def image_extent(positions: int, stride: int, kernel: int) -> int:
    """The rows or columns of the image that ``positions`` positions of the result read."""
    return (positions - 1) * stride + kernel
