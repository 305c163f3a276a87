"""How a 1-bit convolution is cut into jobs, tiles and blocks of pairs of positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx

from fqt_deploy.targets.cpu.products.nibble_convolution import ShuffledConvolution
from fqt_deploy.targets.cpu.products.register_tile import largest_divisor

BLOCK_WORDS = 7
"""Words whose differences fit into a byte."""


@dataclass(frozen=True, kw_only=True)
class PairedConvolution(ShuffledConvolution):
    """A convolution, and how it is cut.

    Attributes:
        image, channels: height and width, channels of the input.
        out, outputs: height and width, channels of the result.
        dtype: of the result.
    """

    image: list[int]
    channels: int
    out: list[int]
    outputs: int
    dtype: str

    @property
    def jobs(self) -> int:
        """Independent ones."""
        return self.samples * self.out[0] * self.out[1] // (self.job[0] * self.job[1])

    @property
    def row_pairs(self) -> int:
        """Pairs of a row of a job; the last one's second position may not exist."""
        return -(-self.job[1] // 2)

    @property
    def run(self) -> int:
        """Pairs that read a block of the weight in turn, from the first-level cache."""
        return largest_divisor(self.job[0] * self.row_pairs, self.tile[1])

    @property
    def vectors(self) -> int:
        """Registers of columns."""
        return self.outputs // self.shuffle.width

    @property
    def group(self) -> int:
        """Registers of columns that one table is looked up for: their indices are operands in memory."""
        return largest_divisor(self.vectors, self.tile[0])

    @property
    def block(self) -> tuple[int, int]:
        """Taps and words of a block, whose counts are held in registers."""
        words = largest_divisor(self.words, BLOCK_WORDS)
        taps = largest_divisor(self.taps, BLOCK_WORDS // self.words) if self.words <= BLOCK_WORDS else 1
        return taps, words

    @property
    def extent(self) -> tuple[int, int]:
        """Rows and columns of the padded image where pairs of a job begin."""
        height = (self.job[0] - 1) * self.stride[0] + self.kernel[0]
        return height, (self.row_pairs - 1) * 2 * self.stride[1] + self.kernel[1]

    def source(self, index: Any, h: Any, t: Any) -> tuple[Any, Any, Any]:
        """Sample, row and column of the image where row ``h``, column ``t`` of the padded image of a job are."""
        if self.is_flat:
            at = index * self.job[1] + t
            return at // (self.out[0] * self.out[1]), at // self.out[1] % self.out[0], at % self.out[1]
        first = index * self.job[0]
        row = first % self.out[0] * self.stride[0] + h - self.padding[0]
        return first // self.out[0], row, t - self.padding[1]

    def is_inside(self, index: Any, h: Any, t: Any) -> Any:
        """Whether that is a place in the image."""
        if self.is_flat:
            return t < self.job[1]
        _, y, z = self.source(index, h, t)
        return tirx.all(y >= 0, y < self.image[0], z >= 0, z < self.image[1])

    def word_at(self, x: Any, index: Any, h: Any, t: Any, word: Any) -> Any:
        """A word of the padded image."""
        n, y, z = self.source(index, h, t)
        return tirx.if_then_else(self.is_inside(index, h, t), x[n, y, z, word], 0)

    def kind(self, index: Any, h: Any, t: Any) -> Any:
        """Of the pair that begins there."""
        first, second = (self.is_inside(index, h, at) for at in (t, t + self.stride[1]))
        return tirx.Select(first, 0, 1) + tirx.Select(second, 0, 2)

    def first(self, pair: Any, tap: Any) -> tuple[Any, Any]:
        """Row and column of the padded image where the first of a pair of positions reads a tap."""
        h, t = pair // self.row_pairs, pair % self.row_pairs * 2
        return h * self.stride[0] + tap // self.kernel[1], t * self.stride[1] + tap % self.kernel[1]

    def destination(self, index: Any, pair: Any, second: Any) -> tuple[Any, Any, Any]:
        """Sample, row and column of the result for a position of a pair."""
        column = pair % self.row_pairs * 2 + second
        at = index * (self.job[0] * self.job[1]) + pair // self.row_pairs * self.job[1] + column
        return at // (self.out[0] * self.out[1]), at // self.out[1] % self.out[0], at % self.out[1]
