"""How an activation-gradient product is cut into jobs, tiles and blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.targets.cpu.products.nibble_convolution import ShuffledConvolution
from fqt_deploy.targets.cpu.products.nibble_table import ENTRIES, NIBBLES, lookups_of_a_byte, lookups_of_a_half
from fqt_deploy.targets.cpu.products.register_tile import largest_divisor

BLOCK_LOOKUPS = 192
"""Lookups of a register between visits of its sums in memory: indices of a block stay in the first-level cache."""


@dataclass(frozen=True, kw_only=True)
class CodeConvolution(ShuffledConvolution):
    """The transposed convolution of a gradient's codes, and how it is cut.

    Attributes:
        gradient, bits: height and width of the gradient, bits of a code.
        channels, hw: of the result: channels, height and width.
    """

    gradient: list[int]
    bits: int
    channels: int
    hw: list[int]

    @property
    def positions(self) -> int:
        """Of a job."""
        return self.job[0] * self.job[1]

    @property
    def jobs(self) -> int:
        """Independent ones."""
        return self.samples * self.hw[0] * self.hw[1] // self.positions

    @property
    def run(self) -> int:
        """Positions that read a block of the weight in turn, from the first-level cache."""
        return largest_divisor(self.positions, self.tile[1])

    @property
    def vectors(self) -> int:
        """Registers of columns."""
        return self.channels // self.shuffle.width

    @property
    def group(self) -> int:
        """Registers of columns that one table is looked up for: their indices are operands in memory."""
        return largest_divisor(self.vectors, self.tile[0])

    @property
    def chunk(self) -> int:
        """Lookups whose sums fit into a byte."""
        return lookups_of_a_byte(self.bits)

    @property
    def block(self) -> tuple[int, int]:
        """Taps and words of a block, whose sums are held in registers."""
        words = largest_divisor(self.words, lookups_of_a_half(self.bits) // NIBBLES)
        return largest_divisor(self.taps, max(1, BLOCK_LOOKUPS // (self.words * NIBBLES))), words

    @property
    def extent(self) -> tuple[int, int]:
        """Rows and columns of gradients that a job reads."""
        return self.job[0] + self.kernel[0] - 1, self.job[1] + self.kernel[1] - 1

    def place(self, index: Any, position: Any) -> tuple[Any, Any, Any]:
        """Sample, row and column of the result for a position of a job."""
        at = index * self.positions + position
        return at // (self.hw[0] * self.hw[1]), at // self.hw[1] % self.hw[0], at % self.hw[1]

    def source(self, index: Any, h: Any, v: Any) -> tuple[Any, Any, Any]:
        """Sample, row and column of the spread gradient where row ``h``, column ``v`` of a job's gradients are."""
        if self.is_flat:
            return self.place(index, v)
        sample, row, _ = self.place(index, 0)
        border = [k - 1 - p for k, p in zip(self.kernel, self.padding, strict=True)]
        return sample, row + h - border[0], v - border[1]

    def exists(self, y: Any, z: Any) -> Any:
        """Whether there is a gradient at a place of the spread gradient."""
        inside = [tirx.all(at >= 0, at < e * s) for at, e, s in zip((y, z), self.gradient, self.stride, strict=True)]
        aligned = [(at % s).equal(0) for at, s in zip((y, z), self.stride, strict=True)]
        return tirx.all(*inside, *aligned)

    def plane(self, planes: Any, index: Any, h: Any, v: Any, word: Any, p: Any) -> Any:
        """A word of bit-plane ``p`` there; zeros beyond the last plane."""
        n, y, z = self.source(index, h, v)
        at = planes[n, y // self.stride[0], z // self.stride[1], T.min(p, self.bits - 1), word]
        return tirx.if_then_else(p < self.bits, at, 0)

    def code_sum(self, planes: Any, index: Any, h: Any, v: Any, word: Any) -> Any:
        """Of the codes of a word."""
        total: Any = 0
        for p in range(self.bits):
            total = total + (tirx.popcount(self.plane(planes, index, h, v, word, p)) << p)
        return total

    def tap_sum(self, sums: Any, position: Any) -> Any:
        """Of all codes that a position of the result is made of."""
        total: Any = 0
        for tap in range(self.taps):
            total = total + sums[self.gradient_at(position, tap)]
        return total

    def gradient_at(self, position: Any, tap: Any) -> tuple[Any, Any]:
        """Row and column of the gradient that a tap of a position reads."""
        return position // self.job[1] + tap // self.kernel[1], position % self.job[1] + tap % self.kernel[1]

    def table_at(self, h: Any, v: Any, word: Any) -> Any:
        """Which row of ``tables`` are those of a word of a gradient."""
        return (h * self.extent[1] + v) * self.words + word

    def found(self, tables: Any, indices: Any, position: Any, vector: Any, tap: Any, word: Any, k: Any) -> Any:
        """Sum of the lookups of chunk ``k`` of a word; the kernel is turned around."""
        total: Any = None
        for i in range(self.chunk):
            j = k * self.chunk + i
            table = tables[self.table_at(*self.gradient_at(position, tap), word), j, T.ramp(0, 1, ENTRIES)]
            flipped = (self.taps - 1 - tap) * self.words + word
            one = self.shuffle.look_up(table, indices[vector, flipped, j, self.shuffle.byte_lanes])
            total = one if total is None else total + one
        return total
