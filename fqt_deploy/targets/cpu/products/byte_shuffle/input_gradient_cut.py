"""The cut of an activation-gradient product into jobs, tiles and blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.targets.cpu.products.byte_shuffle.nibble_table import (
    ENTRIES,
    NIBBLES,
    lookups_of_a_byte,
    lookups_of_a_half,
)
from fqt_deploy.targets.cpu.products.byte_shuffle.shuffled_convolution import ShuffledConvolution
from fqt_deploy.targets.cpu.register_tile import largest_divisor
from fqt_deploy.targets.products import BitInputGradient, numbered_position

BLOCK_LOOKUPS = 192
"""Number of lookups of a register between visits of its sums in memory: indices of a block stay in the first-level
cache.
"""


@dataclass(frozen=True)
class CodeConvolution(ShuffledConvolution[BitInputGradient]):
    """The transposed convolution of a gradient's codes: tables are of positions of the gradient."""

    @property
    def turns(self) -> int:
        """Number of positions in a job; each reads a block of the weight in turn."""
        return self.job[0] * self.job[1]

    @property
    def jobs(self) -> int:
        """Number of independent jobs."""
        height, width = self.product.image
        return self.product.samples * height * width // self.turns

    @property
    def chunk(self) -> int:
        """Number of lookups whose sums fit together into a byte."""
        return lookups_of_a_byte(self.product.bits)

    @property
    def block(self) -> tuple[int, int]:
        """Taps and words of a block, whose sums are held in registers."""
        p = self.product
        words = largest_divisor(p.words, lookups_of_a_half(p.bits) // NIBBLES)
        return largest_divisor(p.taps, max(1, BLOCK_LOOKUPS // (p.words * NIBBLES))), words

    @property
    def extent(self) -> tuple[int, int]:
        """Rows and columns of gradients that a job reads."""
        return self.job[0] + self.product.kernel[0] - 1, self.job[1] + self.product.kernel[1] - 1

    def place(self, index: Any, position: Any) -> tuple[Any, Any, Any]:
        """Sample, row and column of the result for a position of a job."""
        return numbered_position(index * self.turns + position, self.product.image)

    def source(self, index: Any, h: Any, v: Any) -> tuple[Any, Any, Any]:
        """Sample, row and column of the spread gradient where row ``h``, column ``v`` of a job's gradients are."""
        if self.is_flat:
            return self.place(index, v)
        sample, row, _ = self.place(index, 0)
        return sample, row + h - self.product.border[0], v - self.product.border[1]

    def plane(self, planes: Any, index: Any, h: Any, v: Any, word: Any, p: Any) -> Any:
        """A word of bit-plane ``p`` there; zeros beyond the last plane."""
        (n, y, z), (down, across) = self.source(index, h, v), self.product.stride
        last = self.product.bits - 1
        return tirx.if_then_else(p < self.product.bits, planes[n, y // down, z // across, T.min(p, last), word], 0)

    def code_sum(self, planes: Any, index: Any, h: Any, v: Any, word: Any) -> Any:
        """The sum of the codes of a word."""
        total: Any = 0
        for p in range(self.product.bits):
            total = total + (tirx.popcount(self.plane(planes, index, h, v, word, p)) << p)
        return total

    def tap_sum(self, sums: Any, position: Any) -> Any:
        """The sum of all codes that a position of the result is made of."""
        total: Any = 0
        for tap in range(self.product.taps):
            total = total + sums[self.gradient_at(position, tap)]
        return total

    def gradient_at(self, position: Any, tap: Any) -> tuple[Any, Any]:
        """Row and column of the gradient that a tap of a position reads."""
        row, column = self.product.tap(tap)
        return position // self.job[1] + row, position % self.job[1] + column

    def table_at(self, h: Any, v: Any, word: Any) -> Any:
        """Which row of ``tables`` are those of a word of a gradient."""
        return (h * self.extent[1] + v) * self.product.words + word

    def found(self, tables: Any, indices: Any, position: Any, vector: Any, tap: Any, word: Any, k: Any) -> Any:
        """Sum of the lookups of chunk ``k`` of a word; the kernel is turned around."""
        total: Any = None
        for i in range(self.chunk):
            j = k * self.chunk + i
            table = tables[self.table_at(*self.gradient_at(position, tap), word), j, T.ramp(0, 1, ENTRIES)]
            turned = (self.product.taps - 1 - tap) * self.product.words + word
            one = self.shuffle.look_up(table, indices[vector, turned, j, self.shuffle.byte_lanes])
            total = one if total is None else total + one
        return total
