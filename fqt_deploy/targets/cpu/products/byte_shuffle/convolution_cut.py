"""The cut of a 1-bit convolution into jobs, tiles and blocks of pairs of positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx

from fqt_deploy.targets.cpu.products.byte_shuffle.shuffled_convolution import ShuffledConvolution
from fqt_deploy.targets.cpu.register_tile import largest_divisor
from fqt_deploy.targets.products import BitConvolution, Extents, numbered_position

BLOCK_WORDS = 7
"""Number of words whose differences fit together into a byte."""


@dataclass(frozen=True)
class PairedConvolution(ShuffledConvolution[BitConvolution]):
    """A convolution of signs: tables are of pairs of positions, neighbours in a row."""

    @property
    def result(self) -> Extents:
        """Rows and columns of the result."""
        return self.product.output

    @property
    def row_pairs(self) -> int:
        """Number of pairs in a row of a job; the second position of the last one may not exist."""
        return -(-self.job[1] // 2)

    @property
    def turns(self) -> int:
        """Number of pairs of positions in a job; each reads a block of the weight in turn."""
        return self.job[0] * self.row_pairs

    def turns_of(self, index: Any) -> Any:
        """Number of pairs of positions of a job."""
        return self.job[0] * ((self.columns_of(index) + 1) // 2)

    @property
    def block(self) -> tuple[int, int]:
        """Taps and words of a block, whose counts are held in registers."""
        p = self.product
        words = largest_divisor(p.words, BLOCK_WORDS)
        return (largest_divisor(p.taps, BLOCK_WORDS // p.words) if p.words <= BLOCK_WORDS else 1), words

    @property
    def extent(self) -> tuple[int, int]:
        """Rows and columns of the padded image where pairs of a job begin."""
        p = self.product
        height = (self.job[0] - 1) * p.stride[0] + p.kernel[0]
        return height, (self.row_pairs - 1) * 2 * p.stride[1] + p.kernel[1]

    def source(self, index: Any, h: Any, t: Any) -> tuple[Any, Any, Any]:
        """Sample, row and column of the image where row ``h``, column ``t`` of the padded image of a job are."""
        p = self.product
        if self.is_flat:
            return numbered_position(index * self.job[1] + t, p.output)
        first = index * self.job[0]
        row = first % p.output[0] * p.stride[0] + h - p.padding[0]
        return first // p.output[0], row, t - p.padding[1]

    def is_inside(self, index: Any, h: Any, t: Any) -> Any:
        """Whether row ``h``, column ``t`` of the padded image of a job is a place in the image."""
        if self.is_flat:
            return t < self.columns_of(index)
        _, y, z = self.source(index, h, t)
        return tirx.all(y >= 0, y < self.product.image[0], z >= 0, z < self.product.image[1])

    def word_at(self, x: Any, index: Any, h: Any, t: Any, word: Any) -> Any:
        """A word of the padded image of a job; 0 outside the image."""
        n, y, z = self.source(index, h, t)
        return tirx.if_then_else(self.is_inside(index, h, t), x[n, y, z, word], 0)

    def kind(self, index: Any, h: Any, t: Any) -> Any:
        """The kind of the pair that begins there, a number below ``KINDS``."""
        first, second = (self.is_inside(index, h, at) for at in (t, t + self.product.stride[1]))
        return tirx.Select(first, 0, 1) + tirx.Select(second, 0, 2)

    def first(self, pair: Any, tap: Any) -> tuple[Any, Any]:
        """Row and column of the padded image where the first of a pair of positions reads a tap."""
        (h, t), (row, column) = (pair // self.row_pairs, pair % self.row_pairs * 2), self.product.tap(tap)
        return h * self.product.stride[0] + row, t * self.product.stride[1] + column

    def destination(self, index: Any, pair: Any, second: Any) -> tuple[Any, Any, Any]:
        """Sample, row and column of the result for a position of a pair."""
        column = pair % self.row_pairs * 2 + second
        at = index * (self.job[0] * self.job[1]) + pair // self.row_pairs * self.job[1] + column
        return numbered_position(at, self.product.output)
