"""Convolutions of codes by byte shuffles, whichever way they go: nibbles of weights look up sums of four codes.

A job builds the tables of every position that it reads; each of its positions looks up the nibbles of the weight
there, tap by tap. Codes of more than four bits are digits of four, each with tables of its own.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, TypeVar

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.ops.lib.packed_words import PANEL
from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.products.byte_shuffle.nibble_table import (
    ENTRIES,
    NIBBLES,
    PAIR_TABLES,
    QUARTERS,
    add_found,
    clear_sums,
    fill_pair_tables,
    fill_tables,
    fill_weight_indices,
    lookups_of_a_byte,
    lookups_of_a_half,
    plane_pairs,
    separate_sums,
)
from fqt_deploy.targets.cpu.products.byte_shuffle.shuffled_convolution import ShuffledConvolution
from fqt_deploy.targets.cpu.products.digits import digits_of
from fqt_deploy.targets.cpu.register_tile import largest_divisor
from fqt_deploy.targets.products import BitInputGradient, Extents, LevelConvolution, numbered_position

Product = TypeVar("Product", BitInputGradient, LevelConvolution)

BAND_BYTES = 1 << 18
"""Upper bound of the bytes of one band's tables, which are read from the second-level cache."""
BLOCK_LOOKUPS = 192
"""Number of lookups of a register between visits of its sums in memory: indices of a block stay in the first-level
cache.
"""


def band_rows(height: int, table_bytes: Any, most: int | None = None) -> int:
    """The most rows of a band that divide ``height`` and whose tables, of ``table_bytes(rows)``, fit the cache; or 1.

    Args:
        height: rows of the result.
        table_bytes: the bytes of the tables that a band of so many rows reads.
        most: upper bound of the rows, if there is another one.
    """
    return max(
        b for b in range(1, height + 1)
        if height % b == 0 and (b == 1 or (table_bytes(b) <= BAND_BYTES and (most is None or b <= most)))
    )  # fmt: skip


@dataclass(frozen=True)
class CodeConvolution(ShuffledConvolution[Product]):
    """A convolution of codes with signs: tables are of positions that hold codes."""

    @property
    @abstractmethod
    def coded(self) -> Extents:
        """Rows and columns of the image of codes."""

    @property
    @abstractmethod
    def extent(self) -> Extents:
        """Rows and columns of codes that a job reads."""

    @abstractmethod
    def source(self, index: Any, h: Any, v: Any) -> tuple[Any, Any, Any, Any]:
        """Where row ``h``, column ``v`` of what a job reads lies: sample, row, column, and whether there are codes."""

    @abstractmethod
    def read(self, position: Any, tap: Any) -> tuple[Any, Any]:
        """Row and column, of what a job reads, that a tap of a position reads."""

    @abstractmethod
    def weight_tap(self, tap: Any) -> Any:
        """The number of the tap of the weight that ``tap`` of a position meets."""

    @abstractmethod
    def level(self, value: Any, constants: Any, at: tuple[Any, Any, Any], lanes: Any) -> Any:
        """The result at a position for the columns ``lanes``, from the sums of codes times signs."""

    @property
    def turns(self) -> int:
        """Number of positions in a job; each reads a block of the weight in turn."""
        return self.job[0] * self.job[1]

    def turns_of(self, index: Any) -> Any:
        """Number of positions of a job."""
        return self.job[0] * self.columns_of(index)

    @property
    def digits(self) -> int:
        """Number of digits of a code, which have tables of their own."""
        return digits_of(self.product.bits)

    @property
    def digit_bits(self) -> int:
        """Width of a digit in bits."""
        return self.product.bits // self.digits

    @property
    def chunk(self) -> int:
        """Number of lookups whose sums fit together into a byte."""
        return lookups_of_a_byte(self.digit_bits)

    @property
    def block(self) -> tuple[int, int]:
        """Taps and words of a block, whose sums are held in registers."""
        p = self.product
        words = largest_divisor(p.words, lookups_of_a_half(self.digit_bits) // NIBBLES)
        return largest_divisor(p.taps, max(1, BLOCK_LOOKUPS // (p.words * NIBBLES))), words

    @property
    def planes_shape(self) -> tuple[int, ...]:
        """The extents of the planes of codes."""
        return self.product.samples, *self.coded, self.product.bits, self.product.words

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The extents of the packed weight."""
        return self.product.panels, self.product.contraction, PANEL

    @property
    def result_shape(self) -> tuple[int, ...]:
        """The extents of the result."""
        return self.product.samples, *self.result, self.product.columns

    @property
    def table_rows(self) -> int:
        """Number of words of digits that a job has tables of."""
        return self.digits * self.extent[0] * self.extent[1] * self.product.words

    def place(self, index: Any, position: Any) -> tuple[Any, Any, Any]:
        """Sample, row and column of the result for a position of a job."""
        return numbered_position(index * self.turns + position, self.result)

    def plane(self, planes: Any, at: tuple[Any, Any, Any], word: Any, digit: Any, p: Any) -> Any:
        """A word of bit-plane ``p`` of a digit there; zeros beyond the last plane."""
        own = planes[(*at, digit * self.digit_bits + T.min(p, self.digit_bits - 1), word)]
        return tirx.if_then_else(p < self.digit_bits, own, 0)

    def code_sum(self, planes: Any, at: tuple[Any, Any, Any], word: Any) -> Any:
        """The sum of the codes of a word."""
        total: Any = 0
        for p in range(self.product.bits):
            total = total + (tirx.popcount(planes[(*at, p, word)]) << p)
        return total

    def tap_sum(self, sums: Any, position: Any) -> Any:
        """The sum of all codes that a position of the result is made of."""
        total: Any = 0
        for tap in range(self.product.taps):
            total = total + sums[self.read(position, tap)]
        return total

    def table_at(self, digit: Any, h: Any, v: Any, word: Any) -> Any:
        """Which row of ``tables`` are those of a word of a position."""
        return ((digit * self.extent[0] + h) * self.extent[1] + v) * self.product.words + word

    def found(
        self, tables: Any, indices: Any, position: Any, vector: Any, digit: Any, tap: Any, word: Any, k: Any
    ) -> Any:
        """Sum of the lookups of chunk ``k`` of a word."""
        total: Any = None
        for i in range(self.chunk):
            j = k * self.chunk + i
            table = tables[self.table_at(digit, *self.read(position, tap), word), j, T.ramp(0, 1, ENTRIES)]
            row = self.weight_tap(tap) * self.product.words + word
            one = self.shuffle.look_up(table, indices[vector, row, j, self.shuffle.byte_lanes])
            total = one if total is None else total + one
        return total


@script.macro
def build_tables(tables: Any, sums: Any, planes: Any, pair_tables: Any, index: Any, c: Any) -> None:
    """Tables and sums of the codes of every position that a job reads."""
    for h, v in T.grid(c.extent[0], c.extent[1]):
        sums[h, v] = 0
        if c.source(index, h, v)[3]:
            n: T.let = c.source(index, h, v)[0]
            y: T.let = c.source(index, h, v)[1]
            z: T.let = c.source(index, h, v)[2]
            for w in T.serial(c.product.words):
                for digit in T.unroll(c.digits):
                    codes = T.alloc_buffer((2 * plane_pairs(c.digit_bits),), "int32")
                    for p in T.unroll(2 * plane_pairs(c.digit_bits)):
                        codes[p] = c.plane(planes, (n, y, z), w, digit, p)
                    fill_tables(tables, c.table_at(digit, h, v, w), pair_tables, codes, c.digit_bits)
                sums[h, v] = sums[h, v] + c.code_sum(planes, (n, y, z), w)
        else:
            for digit, w, j in T.grid(c.digits, c.product.words, NIBBLES):
                tables[c.table_at(digit, h, v, w), j, T.ramp(0, 1, ENTRIES)] = T.broadcast(T.uint8(0), ENTRIES)


@script.macro
def _add_block(
    totals: Any, tables: Any, indices: Any, at_run: Any,
    position: Any, vector: Any, digit: Any, tap: Any, word: Any, c: Any,
) -> None:  # fmt: skip
    """Add the products of a position over the block that begins with ``tap`` and ``word`` to its totals."""
    sums = T.alloc_buffer((c.group, 2, c.shuffle.width // 2), "uint16")
    clear_sums(sums, c.group, c.shuffle)
    for t, w, k in T.grid(c.block[0], c.block[1], NIBBLES // c.chunk):
        for v in T.unroll(c.group):
            add_found(sums, v, c.found(tables, indices, position, vector + v, digit, tap + t, word + w, k), c.shuffle)
    separate_sums(sums, c.group, c.shuffle)
    for v in T.unroll(c.group):
        for q in T.unroll(QUARTERS):
            begin: T.let = v * c.shuffle.width + q * c.shuffle.quarter
            more: T.let = c.shuffle.words(sums[v, q % 2, c.shuffle.half_lanes], q // 2)
            before: T.let = tirx.if_then_else(
                tirx.all(digit == 0, tap == 0, word == 0),
                T.broadcast(0, c.shuffle.quarter),
                totals[at_run, T.ramp(begin, 1, c.shuffle.quarter)],
            )
            totals[at_run, T.ramp(begin, 1, c.shuffle.quarter)] = before + (
                more << tirx.Broadcast(digit * c.digit_bits, c.shuffle.quarter)
            )


@script.macro
def _write(
    result: Any,
    totals: Any,
    code_sums: Any,
    constants: Any,
    index: Any,
    at_run: Any,
    position: Any,
    vector: Any,
    c: Any,
) -> None:
    """Write the results of a position: twice the sums where signs are positive, less those of all codes."""
    n: T.let = c.place(index, position)[0]
    y: T.let = c.place(index, position)[1]
    z: T.let = c.place(index, position)[2]
    offset: T.let = T.broadcast(c.tap_sum(code_sums, position), c.shuffle.quarter)
    for v in T.unroll(c.group):
        for q in T.unroll(QUARTERS):
            begin: T.let = v * c.shuffle.width + q * c.shuffle.quarter
            column: T.let = vector * c.shuffle.width + begin
            value: T.let = (
                T.broadcast(2, c.shuffle.quarter) * totals[at_run, T.ramp(begin, 1, c.shuffle.quarter)] - offset
            )
            result[n, y, z, T.ramp(column, 1, c.shuffle.quarter)] = T.cast(
                c.level(value, constants, (n, y, z), T.ramp(column, 1, c.shuffle.quarter)),
                f"{result.dtype}x{c.shuffle.quarter}",
            )


@script.macro
def convolve(planes: Any, weight: Any, constants: Any, result: Any, c: Any) -> None:
    """The whole convolution: tables of pairs of nibbles, indices of the weight, then jobs in parallel."""
    pair_tables = T.alloc_buffer((plane_pairs(c.digit_bits), PAIR_TABLES, ENTRIES), "uint8")
    indices = T.alloc_buffer((c.vectors, c.product.contraction, NIBBLES, c.shuffle.width), "uint8")
    fill_pair_tables(pair_tables, c.digit_bits)
    fill_weight_indices(indices, weight, c.shuffle, c.vectors, c.product.contraction)
    for index in T.parallel(c.jobs):
        tables = T.alloc_buffer((c.table_rows, NIBBLES, ENTRIES), "uint8")
        code_sums = T.alloc_buffer((c.extent[0], c.extent[1]), "int32")
        build_tables(tables, code_sums, planes, pair_tables, index, c)
        for group, run in T.grid(c.vectors // c.group, c.runs):
            totals = T.alloc_buffer((c.run, c.group * c.shuffle.width), "int32")
            for digit, block, piece in T.grid(c.digits, c.product.taps // c.block[0], c.product.words // c.block[1]):
                for i in T.serial(c.run_length(index, run)):
                    _add_block(
                        totals, tables, indices, i, run * c.run + i,
                        group * c.group, digit, block * c.block[0], piece * c.block[1], c,
                    )  # fmt: skip
            for i in T.serial(c.run_length(index, run)):
                _write(result, totals, code_sums, constants, index, i, run * c.run + i, group * c.group, c)
