"""Weight-gradient product by byte shuffles: nibbles of positions look up sums of kept channels' codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.ops.lib.packed_words import PANEL
from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.byte_shuffle.nibble_table import (
    ENTRIES,
    NIBBLES,
    PAIR_TABLES,
    QUARTERS,
    ByteShuffle,
    add_found,
    clear_sums,
    fill_pair_tables,
    fill_tables,
    lookups_of_a_byte,
    plane_pairs,
    separate_sums,
    shuffles_pay,
)
from fqt_deploy.targets.cpu.products.form import BYTE_SHUFFLE, NO_CHOICE
from fqt_deploy.targets.products import BitWeightGradient
from fqt_deploy.targets.tuning_log import Tile

RUN_WORDS = 16
"""Number of words of positions whose tables are alive at once: with four channels, 8 KB."""
PIECE_WORDS = 64
"""Least number of words of positions that are worth a sum of their own."""
JOBS = 8
"""Number of independent pieces to cut a product into: work for that many threads."""


class ShuffleWeightGradient:
    """Pieces of positions, groups of channels and groups of columns."""

    name: ClassVar[str] = BYTE_SHUFFLE

    def accepts(self, product: BitWeightGradient, features: CpuFeatures) -> bool:
        """Whether a byte shuffle is the fastest way to multiply codes of this width."""
        return shuffles_pay(features, product.bits)

    def tiles(self, product: BitWeightGradient, features: CpuFeatures) -> tuple[Tile, ...]:
        """The only choice: this form has no tiles to measure."""
        return NO_CHOICE

    def kernel(self, product: BitWeightGradient, tile: Tile, features: CpuFeatures) -> tirx.PrimFunc:
        """Tables are built once for each group of columns, indices once for each of channels: what is cheapest."""
        shuffle = ByteShuffle(features.vector_bits // 8, features.is_x86)
        pieces = next(p for p in (8, 4, 2, 1) if p == 1 or product.words >= p * PIECE_WORDS)
        vectors = -(-product.panels * PANEL // shuffle.width)
        groups = [(JOBS // pieces // columns, columns) for columns in (1, 2, 4, 8) if columns <= JOBS // pieces]
        row_groups, column_groups = min(groups, key=lambda group: group[0] * vectors + group[1] * product.kept)
        return _kernel(_Cut(product, shuffle, pieces, row_groups, column_groups))


@dataclass(frozen=True)
class _Cut:
    """A product and how it is cut.

    Attributes:
        product: what is computed.
        shuffle: the processor's vectors.
        pieces: number of pieces of the positions, each with sums of its own.
        row_groups, column_groups: number of groups of kept channels, and of columns.
    """

    product: BitWeightGradient
    shuffle: ByteShuffle
    pieces: int
    row_groups: int
    column_groups: int

    @property
    def jobs(self) -> int:
        """Number of independent jobs."""
        return self.pieces * self.row_groups * self.column_groups

    @property
    def rows(self) -> int:
        """Number of kept channels in a tile."""
        return next(r for r in (4, 2, 1) if self.product.kept % r == 0)

    @property
    def vectors(self) -> int:
        """Number of registers that all columns take; the last one may reach beyond the last panel."""
        return -(-self.product.panels * PANEL // self.shuffle.width)

    @property
    def chunk(self) -> int:
        """Number of lookups whose sums fit together into a byte."""
        return lookups_of_a_byte(self.product.bits)

    @property
    def group_tiles(self) -> int:
        """Number of tiles in a group of channels."""
        return -(-self.product.kept // (self.rows * self.row_groups))

    @property
    def group_vectors(self) -> int:
        """Number of registers in a group of columns."""
        return -(-self.vectors // self.column_groups)

    @property
    def piece_words(self) -> int:
        """Number of words in a piece of positions."""
        return -(-self.product.words // self.pieces)

    def piece(self, job: Any) -> Any:
        """Which piece of positions a job takes."""
        return job // (self.row_groups * self.column_groups)

    def tile_range(self, job: Any) -> tuple[Any, Any]:
        """First tile of a job and how many there are."""
        first = job // self.column_groups % self.row_groups * self.group_tiles
        return first, T.max(T.min(self.group_tiles, self.product.kept // self.rows - first), 0)

    def vector_range(self, job: Any) -> tuple[Any, Any]:
        """First register of columns of a job and how many there are."""
        first = job % self.column_groups * self.group_vectors
        return first, T.max(T.min(self.group_vectors, self.vectors - first), 0)

    def run_words(self, job: Any, run: Any) -> tuple[Any, Any]:
        """First word of a run of positions of a job and how many there are."""
        first = self.piece(job) * self.piece_words + run * RUN_WORDS
        return first, T.min(T.min(RUN_WORDS, self.piece_words - run * RUN_WORDS), self.product.words - first)

    def quarter(self, positions: Any, vector: Any, word: Any, q: Any) -> Any:
        """Word ``word`` of each column in quarter ``q`` of a register; past the last panel, of other columns."""
        at = vector * self.shuffle.width + q * self.shuffle.quarter
        return positions[T.min(at // PANEL, self.product.panels - 1), word, T.ramp(at % PANEL, 1, self.shuffle.quarter)]

    def plane(self, planes: Any, word: Any, p: Any, channel: Any) -> Any:
        """A word of bit-plane ``p``; zeros beyond the last plane."""
        return tirx.if_then_else(p < self.product.bits, planes[word, T.min(p, self.product.bits - 1), channel], 0)

    def found(self, tables: Any, indices: Any, row: Any, vector: Any, word: Any, k: Any) -> Any:
        """Sum of the lookups of chunk ``k`` of a word."""
        total: Any = None
        for i in range(self.chunk):
            j = k * self.chunk + i
            table = tables[row * RUN_WORDS + word, j, T.ramp(0, 1, ENTRIES)]
            one = self.shuffle.look_up(table, indices[vector, word, j, self.shuffle.byte_lanes])
            total = one if total is None else total + one
        return total

    def total(self, counts: Any, channel: Any, column: Any) -> Any:
        """The sum over all pieces of positions, for one channel and column."""
        value: Any = counts[0, channel, column]
        for piece in range(1, self.pieces):
            value = value + counts[piece, channel, column]
        return value

    def level(self, counts: Any, channel: Any, tap: Any, i: Any) -> Any:
        """A sum of signs is twice the sum where the sign is positive, minus that of the mask."""
        p = self.product
        found: Any = 0
        for plane in range(p.planes):
            found = found + (self.total(counts, channel, tap * p.channels + plane * p.plane_channels + i) << plane)
        return p.level(found, self.total(counts, channel, p.taps * p.channels + tap))


@script.macro
def _add_run(
    counts: Any, tables: Any, indices: Any, piece: Any, row: Any, v: Any, vector: Any, length: Any, c: Any
) -> None:
    """Add the products of a tile over a run of ``length`` words to ``counts``."""
    sums = T.alloc_buffer((c.rows, 2, c.shuffle.width // 2), "uint16")
    clear_sums(sums, c.rows, c.shuffle)
    for w, k in T.grid(length, NIBBLES // c.chunk):
        for r in T.unroll(c.rows):
            add_found(sums, r, c.found(tables, indices, r, v, w, k), c.shuffle)
    separate_sums(sums, c.rows, c.shuffle)
    for r in T.unroll(c.rows):
        for q in T.unroll(QUARTERS):
            begin: T.let = vector * c.shuffle.width + q * c.shuffle.quarter
            counts[piece, row + r, T.ramp(begin, 1, c.shuffle.quarter)] = counts[
                piece, row + r, T.ramp(begin, 1, c.shuffle.quarter)
            ] + c.shuffle.words(sums[r, q % 2, c.shuffle.half_lanes], q // 2)


def _kernel(c: _Cut) -> tirx.PrimFunc:
    """The TIR function: tiles of channels times one register of columns at a time."""
    p = c.product

    @script.prim_func(s_tir=True)
    def product(
        planes: T.Buffer((p.words, p.bits, p.kept), "int32"),
        positions: T.Buffer((p.panels, p.words, PANEL), "int32"),
        result: T.Buffer((p.kept, p.results, p.kernel[0], p.kernel[1]), "int32"),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        pair_tables = T.alloc_buffer((plane_pairs(p.bits), PAIR_TABLES, ENTRIES), "uint8")
        counts = T.alloc_buffer((c.pieces, p.kept, c.vectors * c.shuffle.width), "int32")
        fill_pair_tables(pair_tables, p.bits)
        for job in T.parallel(c.jobs):
            tables = T.alloc_buffer((c.rows * RUN_WORDS, NIBBLES, ENTRIES), "uint8")
            indices = T.alloc_buffer((c.group_vectors, RUN_WORDS, NIBBLES, c.shuffle.width), "uint8")
            first_tile: T.let = c.tile_range(job)[0]
            first_vector: T.let = c.vector_range(job)[0]
            for row, q in T.grid(c.tile_range(job)[1] * c.rows, c.vector_range(job)[1] * QUARTERS):
                counts[
                    c.piece(job), first_tile * c.rows + row,
                    T.ramp(first_vector * c.shuffle.width + q * c.shuffle.quarter, 1, c.shuffle.quarter),
                ] = T.broadcast(0, c.shuffle.quarter)  # fmt: skip
            for run in T.serial(-(-c.piece_words // RUN_WORDS)):
                begin: T.let = c.run_words(job, run)[0]
                length: T.let = c.run_words(job, run)[1]
                for v, w in T.grid(c.vector_range(job)[1], length):
                    quarters = T.alloc_buffer((QUARTERS, c.shuffle.quarter), "int32")
                    for q in T.unroll(QUARTERS):
                        quarters[q, c.shuffle.word_lanes] = c.quarter(positions, first_vector + v, begin + w, q)
                    for j in T.unroll(NIBBLES):
                        indices[v, w, j, c.shuffle.byte_lanes] = c.shuffle.nibble(quarters, j)
                for tile in T.serial(c.tile_range(job)[1]):
                    row: T.let = (first_tile + tile) * c.rows
                    for w, r in T.grid(length, c.rows):
                        codes = T.alloc_buffer((2 * plane_pairs(p.bits),), "int32")
                        for plane in T.unroll(2 * plane_pairs(p.bits)):
                            codes[plane] = c.plane(planes, begin + w, plane, row + r)
                        fill_tables(tables, r * RUN_WORDS + w, pair_tables, codes, p.bits)
                    for v in T.serial(c.vector_range(job)[1]):
                        _add_run(counts, tables, indices, c.piece(job), row, v, first_vector + v, length, c)
        for channel in T.parallel(p.kept):
            for tap, i in T.grid(p.taps, p.results):
                result[channel, i, p.tap(tap)[0], p.tap(tap)[1]] = c.level(counts, channel, tap, i)

    return product
