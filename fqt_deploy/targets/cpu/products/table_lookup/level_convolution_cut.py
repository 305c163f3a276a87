"""The cut of a convolution of levels into jobs, whose tables fit a cache, and tiles of positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.targets.cpu.products.border_signs import BorderSigns
from fqt_deploy.targets.cpu.products.digits import digits_of
from fqt_deploy.targets.cpu.products.table_lookup.lookup import HALVES
from fqt_deploy.targets.products import LevelConvolution

BAND_BYTES = 1 << 19
"""Upper bound of the bytes of one job's tables, which are read from the second-level cache."""
JOBS = 16
"""Number of independent pieces to cut a product into, where it has so many rows: work for that many threads."""


def tile_rows(product: LevelConvolution, most: int) -> int:
    """Number of positions in a tile: part of a row of the result, whole rows of a sample, or whole samples."""
    (height, width), samples = product.output, product.samples

    def fits(rows: int) -> bool:
        if width % rows == 0:
            return True
        lines, images = rows // width, rows // (width * height)
        whole_lines, whole_images = rows % width == 0, rows % (width * height) == 0
        return (whole_lines and height % lines == 0) or (whole_images and samples % images == 0)

    return next(rows for rows in range(most, 0, -1) if fits(rows))


@dataclass(frozen=True)
class TabledConvolution:
    """A product and how it is cut.

    Attributes:
        product: what is computed.
        rows: positions of a tile.
        panels: panels of a tile.
    """

    product: LevelConvolution
    rows: int
    panels: int

    @property
    def digits(self) -> int:
        """Number of digits of a code, which have tables of their own."""
        return digits_of(self.product.bits)

    @property
    def digit_bits(self) -> int:
        """Width of a digit in bits."""
        return self.product.bits // self.digits

    @property
    def word_bytes(self) -> int:
        """Number of bytes of the tables of one word of codes."""
        return self.digits * HALVES * 64

    @property
    def columns(self) -> int:
        """Number of positions of a tile that lie in one row of the result."""
        return min(self.rows, self.product.output[1])

    @property
    def lines(self) -> int:
        """Number of rows of one sample's result that a tile takes part of."""
        return min(self.rows // self.columns, self.product.output[0])

    @property
    def group(self) -> int:
        """Number of samples of a job: those of a tile."""
        return self.rows // (self.columns * self.lines)

    @property
    def band(self) -> int:
        """Number of rows of the result that a job computes: as few as leave enough jobs, if tables fit the cache."""
        p, height = self.product, self.product.output[0]
        row_bytes = self.group * self.width * p.words * self.word_bytes
        bands = [b for b in range(self.lines, height + 1, self.lines) if height % b == 0]
        fitting = [
            b for b in bands
            if self._rows_read(b) * row_bytes <= BAND_BYTES and p.samples // self.group * (height // b) >= JOBS
        ]  # fmt: skip
        return max(fitting, default=bands[0])

    def _rows_read(self, band: int) -> int:
        return (band - 1) * self.product.stride[0] + self.product.kernel[0]

    @property
    def bands(self) -> int:
        """Number of bands in an image."""
        return self.product.output[0] // self.band

    @property
    def jobs(self) -> int:
        """Number of independent jobs."""
        return self.product.samples // self.group * self.bands

    @property
    def height(self) -> int:
        """Number of rows of the padded image that a job reads."""
        return self._rows_read(self.band)

    @property
    def width(self) -> int:
        """Number of columns of the padded image that a job reads."""
        return (self.product.output[1] - 1) * self.product.stride[1] + self.product.kernel[1]

    @property
    def tiles(self) -> int:
        """Number of tiles of positions in a job."""
        return self.group * self.band * self.product.output[1] // self.rows

    def source(self, job: Any, g: Any, h: Any, v: Any) -> tuple[Any, Any, Any]:
        """Sample, row and column of the image at row ``h``, column ``v`` of what a job reads of a sample."""
        first = job % self.bands * self.band * self.product.stride[0]
        row, column = first + h - self.product.padding[0], v - self.product.padding[1]
        return job // self.bands * self.group + g, row, column

    def is_inside(self, y: Any, z: Any) -> Any:
        """Whether a row and column are of the image."""
        return tirx.all(y >= 0, y < self.product.image[0], z >= 0, z < self.product.image[1])

    def codes(self, planes: Any, at: tuple[Any, Any, Any], digit: Any, word: Any) -> list[Any]:
        """A word of every plane of a digit there."""
        return [planes[(*at, digit * self.digit_bits + p, word)] for p in range(self.digit_bits)]

    def code_sum(self, planes: Any, at: tuple[Any, Any, Any], word: Any) -> Any:
        """The sum of the codes of that word."""
        counts = [tirx.popcount(planes[(*at, p, word)]) for p in range(self.product.bits)]
        total: Any = counts[0]
        for plane, count in enumerate(counts[1:], start=1):
            total = total + (count << plane)
        return total

    def position(self, tile: Any, r: Any) -> tuple[Any, Any, Any]:
        """Sample of the job, row of the band and column of a position of a tile."""
        first = tile * self.rows
        if self.group > 1:
            return r // (self.lines * self.columns), r // self.columns % self.lines, r % self.columns
        return 0, first // self.product.output[1] + r // self.columns, first % self.product.output[1] + r % self.columns

    def read(self, tile: Any, r: Any, kh: Any, kw: Any) -> tuple[Any, Any, Any]:
        """Sample, row and column of the tables that a tap of a position reads."""
        g, y, z = self.position(tile, r)
        return g, y * self.product.stride[0] + kh, z * self.product.stride[1] + kw

    def table(self, digit: Any, at: tuple[Any, Any, Any], word: Any, half: Any) -> tuple[Any, ...]:
        """The place of the table of half a word."""
        return digit, *at, word, half, T.ramp(0, 1, 64)

    def tap_sum(self, sums: Any, tile: Any, r: Any) -> Any:
        """The sum of all codes that a position of the result is made of."""
        total: Any = sums[self.read(tile, r, 0, 0)]
        for tap in range(1, self.product.taps):
            total = total + sums[self.read(tile, r, *self.product.tap(tap))]
        return total

    @property
    def borders(self) -> BorderSigns:
        """The kinds of borders of its positions."""
        return BorderSigns(self.product)

    def kind(self, job: Any, tile: Any, r: Any) -> tuple[Any, Any]:
        """The kind of border of a position of a tile."""
        _, y, z = self.position(tile, r)
        return self.borders.kind(job % self.bands * self.band + y, z)
