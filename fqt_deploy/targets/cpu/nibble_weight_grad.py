"""Weight-gradient product by byte shuffles: nibbles of positions look up sums of kept channels' codes."""

from __future__ import annotations

from typing import Any, ClassVar

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.ops.packed_words import PANEL
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.nibble_table import (
    ENTRIES,
    NIBBLES,
    PAIR_TABLES,
    QUARTERS,
    ByteShuffle,
    fill_pair_tables,
    lookups_of_a_byte,
    pair_nibbles,
    shuffles_pay,
    subset_sums,
)
from fqt_deploy.targets.cpu.register_tile import arguments_of

RUN_WORDS = 16
"""Words of positions whose tables are alive at once: with four channels, 8 KB."""
PIECE_WORDS = 64
"""Fewest words of positions worth a sum of their own."""
JOBS = 8
"""Independent pieces to cut a product into: work for that many threads."""


class NibbleWeightGradRule:
    """Takes ``bitplane_weight_grad`` of up to 4 bits where a byte shuffle is the best there is."""

    ops: ClassVar[frozenset[str]] = frozenset({"bitplane_weight_grad"})

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """A hand-written loop nest over pieces of positions, groups of channels and groups of columns."""
        arguments = arguments_of(function)
        words, bits, kept = (int(d) for d in function.params[0].shape)
        if arguments is None or not shuffles_pay(features, bits):
            return None
        _, _, channels, kernel = arguments
        rows = next(r for r in (4, 2, 1) if kept % r == 0)
        panels, width = int(function.params[1].shape[0]), features.vector_bits // 8
        vectors = -(-panels * PANEL // width)
        pieces = next(p for p in (8, 4, 2, 1) if p == 1 or words >= p * PIECE_WORDS)
        groups = [(JOBS // pieces // c, c) for c in (1, 2, 4, 8) if c <= JOBS // pieces]
        row_groups, column_groups = min(groups, key=lambda rc: rc[0] * vectors + rc[1] * kept)
        return _product(
            words, bits, kept, channels, kernel, panels, rows, ByteShuffle(width, features.is_x86),
            pieces, min(row_groups, kept // rows), min(column_groups, vectors),
        )  # fmt: skip


def _product(
    words: int, bits: int, kept: int, channels: int, kernel: list[int], panels: int, rows: int,
    shuffle: ByteShuffle, pieces: int, row_groups: int, column_groups: int,
) -> tirx.PrimFunc:  # fmt: skip
    """The kernel; ``rows`` channels times one register of ``width`` columns are a tile."""
    taps, width, quarter = kernel[0] * kernel[1], shuffle.width, shuffle.quarter
    vectors = -(-panels * PANEL // width)
    tiles, tiles_per_group = kept // rows, -(-(kept // rows) // row_groups)
    vectors_per_group, words_per_piece = -(-vectors // column_groups), -(-words // pieces)
    chunk = lookups_of_a_byte(bits)
    plane_pairs = -(-bits // 2)

    def column(vector: Any, q: int) -> Any:
        """Panel and lane of the first column of a quarter; past the last panel, of what is there."""
        at = vector * width + q * quarter
        return T.min(at // PANEL, panels - 1), at % PANEL

    def plane(planes: Any, word: Any, p: Any, channel: Any) -> Any:
        return tirx.if_then_else(p < bits, planes[word, T.min(p, bits - 1), channel], 0)

    def found_sum(tables: Any, indices: Any, r: Any, v: Any, w: Any, c: Any) -> Any:
        total: Any = None
        for j in range(chunk):
            table = tables[r, w, c * chunk + j, T.ramp(0, 1, ENTRIES)]
            found = shuffle.look_up(table, indices[v, w, c * chunk + j, T.ramp(0, 1, width)])
            total = found if total is None else total + found
        return total

    def total(counts: Any, channel: Any, at: Any) -> Any:
        value: Any = counts[0, channel, at]
        for piece in range(1, pieces):
            value = value + counts[piece, channel, at]
        return value

    @T.prim_func(s_tir=True)
    def product(
        planes: T.Buffer((words, bits, kept), "int32"),
        positions: T.Buffer((panels, words, PANEL), "int32"),
        result: T.Buffer((kept, channels, kernel[0], kernel[1]), "int32"),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        pair_tables = T.alloc_buffer((plane_pairs, PAIR_TABLES, ENTRIES), "uint8")
        counts = T.alloc_buffer((pieces, kept, vectors * width), "int32")
        fill_pair_tables(pair_tables, plane_pairs, bits)
        for job in T.parallel(pieces * row_groups * column_groups):
            tables = T.alloc_buffer((rows, RUN_WORDS, NIBBLES, ENTRIES), "uint8")
            indices = T.alloc_buffer((vectors_per_group, RUN_WORDS, NIBBLES, width), "uint8")
            piece: T.let = job // (row_groups * column_groups)
            first_tile: T.let = job // column_groups % row_groups * tiles_per_group
            first_vector: T.let = job % column_groups * vectors_per_group
            tile_count: T.let = T.max(T.min(tiles_per_group, tiles - first_tile), 0)
            vector_count: T.let = T.max(T.min(vectors_per_group, vectors - first_vector), 0)
            for row, v in T.grid(tile_count * rows, vector_count * QUARTERS):
                counts[piece, first_tile * rows + row, T.ramp(first_vector * width + v * quarter, 1, quarter)] = (
                    T.broadcast(0, quarter)
                )
            for run in T.serial((words_per_piece + RUN_WORDS - 1) // RUN_WORDS):
                begin: T.let = piece * words_per_piece + run * RUN_WORDS
                length: T.let = T.min(T.min(RUN_WORDS, words_per_piece - run * RUN_WORDS), words - begin)
                for v, w in T.grid(vector_count, length):
                    quarters = T.alloc_buffer((QUARTERS, quarter), "int32")
                    for q in T.unroll(QUARTERS):
                        quarters[q, T.ramp(0, 1, quarter)] = positions[
                            column(first_vector + v, q)[0],
                            begin + w,
                            T.ramp(column(first_vector + v, q)[1], 1, quarter),
                        ]
                    for j in T.unroll(NIBBLES):
                        indices[v, w, j, T.ramp(0, 1, width)] = shuffle.nibble(
                            [quarters[q, T.ramp(0, 1, quarter)] for q in range(QUARTERS)], j
                        )
                for tile in T.serial(tile_count):
                    row: T.let = (first_tile + tile) * rows
                    for w, r in T.grid(length, rows):
                        pairs = T.alloc_buffer((plane_pairs, 2), "int32")
                        for p in T.unroll(plane_pairs):
                            for parity in T.unroll(2):
                                pairs[p, parity] = pair_nibbles(
                                    plane(planes, begin + w, 2 * p, row + r),
                                    plane(planes, begin + w, 2 * p + 1, row + r),
                                    parity,
                                )
                        for j in T.unroll(NIBBLES):
                            tables[r, w, j, T.ramp(0, 1, ENTRIES)] = subset_sums(pair_tables, pairs, j, plane_pairs)
                    for v in T.serial(vector_count):
                        sums = T.alloc_buffer((rows, 2, width // 2), "uint16")
                        for r in T.unroll(rows):
                            for odd in T.unroll(2):
                                sums[r, odd, T.ramp(0, 1, width // 2)] = T.broadcast(T.uint16(0), width // 2)
                        for w in T.serial(length):
                            for c in T.unroll(NIBBLES // chunk):
                                for r in T.unroll(rows):
                                    found: T.let = found_sum(tables, indices, r, v, w, c)
                                    sums[r, 0, T.ramp(0, 1, width // 2)] = sums[
                                        r, 0, T.ramp(0, 1, width // 2)
                                    ] + shuffle.halves(found)
                                    sums[r, 1, T.ramp(0, 1, width // 2)] = sums[
                                        r, 1, T.ramp(0, 1, width // 2)
                                    ] + shuffle.odd_bytes(shuffle.halves(found))
                        for r in T.unroll(rows):
                            sums[r, 0, T.ramp(0, 1, width // 2)] = shuffle.even_bytes(
                                sums[r, 0, T.ramp(0, 1, width // 2)], sums[r, 1, T.ramp(0, 1, width // 2)]
                            )
                            for q in T.unroll(QUARTERS):
                                at: T.let = (first_vector + v) * width + q * quarter
                                counts[piece, row + r, T.ramp(at, 1, quarter)] = counts[
                                    piece, row + r, T.ramp(at, 1, quarter)
                                ] + shuffle.words(sums[r, q % 2, T.ramp(0, 1, width // 2)], q // 2)
        for k in T.parallel(kept):
            for tap, i in T.grid(taps, channels):
                result[k, i, tap // kernel[1], tap % kernel[1]] = 2 * total(counts, k, tap * channels + i) - total(
                    counts, k, taps * channels + tap
                )

    return product
