"""1-bit convolution by byte shuffles: nibbles of weights look up how many bits of two positions differ from them.

A nibble of bits has at most four differences from another, which is half a byte: a table is of two neighbours in a row,
the first one's counts in the lower halves of its bytes. There are 256 such tables, and they are the same for all; each
job only notes where in them those of its pairs begin.
"""

from __future__ import annotations

from typing import Any, ClassVar

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.ops.lib.packed_words import PANEL
from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.byte_shuffle.convolution_cut import PairedConvolution
from fqt_deploy.targets.cpu.products.byte_shuffle.nibble_table import (
    ENTRIES,
    NIBBLES,
    PAIR_TABLES,
    QUARTERS,
    ByteShuffle,
    fill_weight_indices,
    pair_nibbles,
    shuffles_pay,
)
from fqt_deploy.targets.cpu.products.byte_shuffle.shuffled_convolution import ShuffleForm, job_extents
from fqt_deploy.targets.products import BitConvolution
from fqt_deploy.targets.tuning_log import Tile

KINDS = 4
"""Number of kinds of pairs: both positions inside the image, the second alone, the first alone, none. Positions outside
differ nowhere.
"""
CHUNK = 3
"""Number of lookups whose counts fit together into half a byte."""
MAXIMUM_TERMS = 65535
"""Upper bound of the differences of one position, which are counted in 16 bits."""
JOBS = 16
"""Number of independent pieces to cut a product into: work for that many threads."""


class ShuffleConvolution(ShuffleForm[BitConvolution]):
    """The 1-bit convolution by byte shuffles; each job computes a band of rows of one image."""

    choices: ClassVar[tuple[Tile, ...]] = ((4, 4), (4, 8), (4, 2), (2, 4), (2, 8), (2, 16), (1, 8), (1, 16))
    """Tiles worth measuring: registers of columns that look up one table, pairs that read a block of the weight in
    turn.
    """

    def accepts(self, product: BitConvolution, features: CpuFeatures) -> bool:
        """Whether panels are whole and an x86 byte shuffle is fastest; ARM counts bits as fast as it shuffles."""
        counts_fit = product.depth * product.taps <= MAXIMUM_TERMS
        return product.has_whole_panels and counts_fit and features.is_x86 and shuffles_pay(features, 1)

    def cut(self, product: BitConvolution, tile: Tile, features: CpuFeatures) -> PairedConvolution:
        """The product cut into bands with as many rows as leave enough jobs."""
        height, width = product.output
        band = max(
            b for b in range(1, height + 1)
            if height % b == 0 and (b == 1 or product.samples * height >= JOBS * b)
        )  # fmt: skip
        shuffle = ByteShuffle.for_columns(product.columns, features)
        return PairedConvolution(product, job_extents(product, band, width), shuffle, tile)

    def kernel(self, product: BitConvolution, tile: Tile, features: CpuFeatures) -> tirx.PrimFunc:
        """The kernel: it builds the tables and the indices of the weight, then runs the jobs in parallel."""
        return _kernel(self.cut(product, tile, features))


def _differences(kind: Any, pair: Any) -> Any:
    """The table of a pair of nibbles: for each nibble of the weight, how many bits of either differ from it."""
    choices = T.cast(T.ramp(0, 1, ENTRIES), f"uint8x{ENTRIES}")

    def count(nibble: Any, outside: Any, weight: int) -> Any:
        found = tirx.popcount(tirx.Broadcast(T.cast(nibble, "uint8"), ENTRIES) ^ choices)
        return found * tirx.Broadcast(T.cast((1 - outside) * weight, "uint8"), ENTRIES)

    return count(pair & 15, kind & 1, 1) + count(pair >> 4, kind >> 1, 16)


def _table_offsets(kind: Any, pairs: Any) -> Any:
    """The places where the tables of four pairs of nibbles begin, as offsets in bytes."""
    numbers = T.cast(T.reinterpret(pairs, dtype="uint8x4"), "int32x4")
    return numbers * T.broadcast(ENTRIES, 4) + T.broadcast(kind * (PAIR_TABLES * ENTRIES), 4)


@script.macro
def _prepare(offsets: Any, inside: Any, x: Any, index: Any, c: Any) -> None:
    """Note where the tables of a job's pairs begin, and the bits of each position's taps inside the image."""
    for h, t, w in T.grid(c.extent[0], c.extent[1], c.product.words):
        for parity in T.unroll(2):
            offsets[h, t, w, parity, T.ramp(0, 1, 4)] = _table_offsets(
                c.kind(index, h, t),
                pair_nibbles(c.word_at(x, index, h, t, w), c.word_at(x, index, h, t + c.product.stride[1], w), parity),
            )
    for h, t in T.grid(c.job[0], c.job[1]):
        inside[h, t] = 0
        for kh, kw in T.grid(c.product.kernel[0], c.product.kernel[1]):
            inside[h, t] = inside[h, t] + tirx.Select(
                c.is_inside(index, h * c.product.stride[0] + kh, t * c.product.stride[1] + kw), c.product.depth, 0
            )


@script.macro
def _count_block(
    counts: Any, tables: Any, offsets: Any, indices: Any,
    at_run: Any, pair: Any, vector: Any, tap: Any, word: Any, c: Any,
) -> None:  # fmt: skip
    """Add the differences of a pair over the block that begins with ``tap`` and ``word`` to its ``counts``."""
    sums = T.alloc_buffer((c.group, 2, c.shuffle.width), "uint8")
    for v, second in T.grid(c.group, 2):
        sums[v, second, c.shuffle.byte_lanes] = T.broadcast(T.uint8(0), c.shuffle.width)
    for t, w in T.grid(c.block[0], c.block[1]):
        for k in T.unroll(-(-NIBBLES // CHUNK)):
            found = T.alloc_buffer((c.group, c.shuffle.width), "uint8")
            for i in T.unroll(CHUNK):
                if k * CHUNK + i < NIBBLES:
                    j: T.let = k * CHUNK + i
                    at: T.let = offsets[c.first(pair, tap + t)[0], c.first(pair, tap + t)[1], word + w, j % 2, j // 2]
                    table: T.let = tables[T.ramp(at, 1, ENTRIES)]
                    for v in T.unroll(c.group):
                        one: T.let = c.shuffle.look_up(
                            table, indices[vector + v, (tap + t) * c.product.words + word + w, j, c.shuffle.byte_lanes]
                        )
                        found[v, c.shuffle.byte_lanes] = tirx.Select(i == 0, one, found[v, c.shuffle.byte_lanes] + one)
            for v in T.unroll(c.group):
                sums[v, 0, c.shuffle.byte_lanes] = sums[v, 0, c.shuffle.byte_lanes] + found[v, c.shuffle.byte_lanes]
                sums[v, 1, c.shuffle.byte_lanes] = sums[v, 1, c.shuffle.byte_lanes] + c.shuffle.upper_halves(
                    found[v, c.shuffle.byte_lanes]
                )
    for v in T.unroll(c.group):
        sums[v, 0, c.shuffle.byte_lanes] = c.shuffle.lower_halves(
            sums[v, 0, c.shuffle.byte_lanes], sums[v, 1, c.shuffle.byte_lanes]
        )
        for second in T.unroll(2):
            for odd in T.unroll(2):
                before: T.let = tirx.if_then_else(
                    tirx.all(tap == 0, word == 0),
                    T.broadcast(T.uint16(0), c.shuffle.width // 2),
                    counts[at_run, v, second, odd, c.shuffle.half_lanes],
                )
                counts[at_run, v, second, odd, c.shuffle.half_lanes] = before + c.shuffle.bytes_of(
                    c.shuffle.halves(sums[v, second, c.shuffle.byte_lanes]), odd
                )


@script.macro
def _write(result: Any, counts: Any, inside: Any, index: Any, at_run: Any, pair: Any, vector: Any, c: Any) -> None:
    """The sums of signs of one pair: bits inside the image, minus twice those that differ."""
    for second in T.unroll(2):
        column: T.let = pair % c.row_pairs * 2 + second
        if column < c.columns_of(index):
            n: T.let = c.destination(index, pair, second)[0]
            y: T.let = c.destination(index, pair, second)[1]
            z: T.let = c.destination(index, pair, second)[2]
            terms: T.let = T.broadcast(inside[pair // c.row_pairs, column], c.shuffle.quarter)
            for v in T.unroll(c.group):
                for q in T.unroll(QUARTERS):
                    differing: T.let = c.shuffle.words(counts[at_run, v, second, q % 2, c.shuffle.half_lanes], q // 2)
                    begin: T.let = (vector + v) * c.shuffle.width + q * c.shuffle.quarter
                    result[n, y, z, T.ramp(begin, 1, c.shuffle.quarter)] = T.cast(
                        terms - T.broadcast(2, c.shuffle.quarter) * differing, f"{c.product.dtype}x{c.shuffle.quarter}"
                    )


def _kernel(c: PairedConvolution) -> tirx.PrimFunc:
    """The TIR function of the convolution that is cut as ``c`` says."""
    p = c.product

    @script.prim_func(s_tir=True)
    def product(
        x: T.Buffer((p.samples, p.image[0], p.image[1], p.words), "int32"),
        weight: T.Buffer((p.panels, p.contraction, PANEL), "int32"),
        result: T.Buffer((p.samples, p.output[0], p.output[1], p.columns), p.dtype),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        tables = T.alloc_buffer((KINDS * PAIR_TABLES * ENTRIES,), "uint8")
        indices = T.alloc_buffer((c.vectors, p.contraction, NIBBLES, c.shuffle.width), "uint8")
        for kind, pair in T.grid(KINDS, PAIR_TABLES):
            tables[T.ramp((kind * PAIR_TABLES + pair) * ENTRIES, 1, ENTRIES)] = _differences(kind, pair)
        fill_weight_indices(indices, weight, c.shuffle, c.vectors, p.contraction)
        for index in T.parallel(c.jobs):
            offsets = T.alloc_buffer((c.extent[0], c.extent[1], p.words, 2, 4), "int32")
            inside = T.alloc_buffer((c.job[0], c.job[1]), "int32")
            _prepare(offsets, inside, x, index, c)
            for group, run in T.grid(c.vectors // c.group, c.runs):
                counts = T.alloc_buffer((c.run, c.group, 2, 2, c.shuffle.width // 2), "uint16")
                for block, piece in T.grid(p.taps // c.block[0], p.words // c.block[1]):
                    for i in T.serial(c.run_length(index, run)):
                        _count_block(
                            counts, tables, offsets, indices, i, run * c.run + i, group * c.group,
                            block * c.block[0], piece * c.block[1], c,
                        )  # fmt: skip
                for i in T.serial(c.run_length(index, run)):
                    _write(result, counts, inside, index, i, run * c.run + i, group * c.group, c)

    return product
