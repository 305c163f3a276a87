"""1-bit convolution by byte shuffles: nibbles of weights look up how many bits of two positions differ from them."""

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
    fill_weight_indices,
    pair_nibbles,
    shuffles_pay,
)
from fqt_deploy.targets.cpu.register_tile import arguments_of, largest_divisor

KINDS = 4
"""Of pairs of positions: both inside the image, the second, the first, none."""
CHUNK = 3
"""Lookups whose counts fit into half a byte."""
BLOCK_WORDS = 7
"""Words of bits whose differences fit into a byte."""
MAXIMUM_COUNT = 65535
JOBS = 16
"""Independent pieces to cut a product into: work for that many threads."""
JOB_POSITIONS = 64
"""Positions of a job where rows of an image have no meaning: one tap."""


class NibbleBinaryConv2dRule:
    """Takes ``binary_conv2d`` with a multiple of 16 output channels where a byte shuffle is the best there is."""

    ops: ClassVar[frozenset[str]] = frozenset({"binary_conv2d"})

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """A hand-written loop nest; a table is of two positions, whose counts share its bytes."""
        arguments = arguments_of(function)
        if arguments is None or arguments[3] % PANEL or not (features.is_x86 and shuffles_pay(features, 1)):
            return None
        _, _, channels, outputs, kernel, stride, padding = arguments
        if channels * kernel[0] * kernel[1] > MAXIMUM_COUNT:
            return None
        x, result = function.params[0], function.params[-1]
        samples, height, width, words = (int(d) for d in x.shape)
        _, oh, ow, _ = (int(d) for d in result.shape)
        columns = next(w for w in (64, 32, 16) if w <= features.vector_bits // 8 and outputs % w == 0)
        if kernel == [1, 1] and stride == [1, 1] and padding == [0, 0]:
            job = [1, largest_divisor(samples * oh * ow, JOB_POSITIONS)]
        else:
            job = [max(b for b in range(1, oh + 1) if oh % b == 0 and (b == 1 or samples * oh >= JOBS * b)), ow]
        return _product(
            samples, [height, width], words, channels, [oh, ow], outputs, kernel, stride, padding, job,
            ByteShuffle(columns, features.is_x86), str(result.dtype),
        )  # fmt: skip


def _product(
    samples: int, image: list[int], words: int, channels: int, out: list[int], outputs: int, kernel: list[int],
    stride: list[int], padding: list[int], job: list[int], shuffle: ByteShuffle, dtype: str,
) -> tirx.PrimFunc:  # fmt: skip
    """The kernel; each job makes ``job`` rows and columns of positions."""
    taps, width, quarter, half = kernel[0] * kernel[1], shuffle.width, shuffle.quarter, shuffle.width // 2
    per_row = -(-job[1] // 2)
    height, breadth = (job[0] - 1) * stride[0] + kernel[0], (per_row - 1) * 2 * stride[1] + kernel[1]
    flat = taps == 1 and stride == [1, 1]
    jobs = samples * out[0] * out[1] // (job[0] * job[1])
    pairs = next(p for p in (2, 1) if job[0] * per_row % p == 0)
    tiles = largest_divisor(job[0] * per_row // pairs, 4)
    vectors = outputs // width
    group = largest_divisor(vectors, 2)
    part = largest_divisor(words, BLOCK_WORDS)
    block_taps = max(t for t in range(1, taps + 1) if taps % t == 0 and (t == 1 or t * words <= BLOCK_WORDS))
    wide = T.ramp(0, 1, width)

    def source(index: Any, h: Any, t: Any) -> tuple[Any, Any, Any]:
        """Sample, row and column of the image where column ``t`` of row ``h`` of a job's padded image is."""
        if flat:
            at = index * job[1] + t
            return at // (out[0] * out[1]), at // out[1] % out[0], at % out[1]
        first = index * job[0]
        return first // out[0], first % out[0] * stride[0] + h - padding[0], t - padding[1]

    def is_inside(index: Any, h: Any, t: Any) -> Any:
        if flat:
            return t < job[1]
        _, y, z = source(index, h, t)
        return tirx.all(y >= 0, y < image[0], z >= 0, z < image[1])

    def word_at(x: Any, index: Any, h: Any, t: Any, w: Any) -> Any:
        n, y, z = source(index, h, t)
        return tirx.if_then_else(is_inside(index, h, t), x[n, y, z, w], 0)

    def destination(index: Any, u: Any, second: int) -> tuple[Any, Any, Any]:
        """Sample, row and column of the result for a position of pair ``u`` of a job."""
        at = index * (job[0] * job[1]) + u // per_row * job[1] + u % per_row * 2 + second
        return at // (out[0] * out[1]), at // out[1] % out[0], at % out[1]

    def differences(kind: Any, pair: Any) -> Any:
        """Table of a pair of nibbles: the first one's counts in the lower halves of its bytes."""
        choices = T.cast(T.ramp(0, 1, ENTRIES), f"uint8x{ENTRIES}")

        def count(nibble: Any, outside: Any, weight: int) -> Any:
            found = tirx.popcount(tirx.Broadcast(T.cast(nibble, "uint8"), ENTRIES) ^ choices)
            return found * tirx.Broadcast(T.cast((1 - outside) * weight, "uint8"), ENTRIES)

        return count(pair & 15, kind & 1, 1) + count(pair >> 4, kind >> 1, 16)

    def table_offsets(kind: Any, pairs: Any) -> Any:
        """Where in ``tables`` those of four pairs begin."""
        numbers = T.cast(T.reinterpret(pairs, dtype="uint8x4"), "int32x4")
        return numbers * T.broadcast(ENTRIES, 4) + T.broadcast(kind * (PAIR_TABLES * ENTRIES), 4)

    @T.prim_func(s_tir=True)
    def product(
        x: T.Buffer((samples, image[0], image[1], words), "int32"),
        weight: T.Buffer((outputs // PANEL, taps * words, PANEL), "int32"),
        result: T.Buffer((samples, out[0], out[1], outputs), dtype),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        tables = T.alloc_buffer((KINDS * PAIR_TABLES * ENTRIES,), "uint8")
        indices = T.alloc_buffer((vectors, taps * words, NIBBLES, width), "uint8")
        for kind, pair in T.grid(KINDS, PAIR_TABLES):
            tables[T.ramp((kind * PAIR_TABLES + pair) * ENTRIES, 1, ENTRIES)] = differences(kind, pair)
        fill_weight_indices(indices, weight, shuffle, vectors, taps * words)
        for index in T.parallel(jobs):
            offsets = T.alloc_buffer((height, breadth, words, 2, 4), "int32")
            inside = T.alloc_buffer((job[0], job[1]), "int32")
            for h, t in T.grid(height, breadth):
                kind: T.let = tirx.Select(is_inside(index, h, t), 0, 1) + tirx.Select(
                    is_inside(index, h, t + stride[1]), 0, 2
                )
                for w in T.serial(words):
                    for parity in T.unroll(2):
                        offsets[h, t, w, parity, T.ramp(0, 1, 4)] = table_offsets(
                            kind,
                            pair_nibbles(word_at(x, index, h, t, w), word_at(x, index, h, t + stride[1], w), parity),
                        )
            for h, t in T.grid(job[0], job[1]):
                inside[h, t] = 0
                for kh, kw in T.grid(kernel[0], kernel[1]):
                    inside[h, t] = inside[h, t] + tirx.Select(
                        is_inside(index, h * stride[0] + kh, t * stride[1] + kw), channels, 0
                    )
            for g, chain in T.grid(vectors // group, job[0] * per_row // (pairs * tiles)):
                counts = T.alloc_buffer((tiles, pairs, group, 2, 2, half), "uint16")
                for block, piece, tile in T.grid(taps // block_taps, words // part, tiles):
                    sums = T.alloc_buffer((pairs, group, 2, width), "uint8")
                    for p, c, second in T.grid(pairs, group, 2):
                        sums[p, c, second, wide] = T.broadcast(T.uint8(0), width)
                    for tap, w in T.grid(block_taps, part):
                        at_tap: T.let = block * block_taps + tap
                        word: T.let = piece * part + w
                        for k in T.unroll(-(-NIBBLES // CHUNK)):
                            found = T.alloc_buffer((pairs, group, width), "uint8")
                            for i in T.unroll(CHUNK):
                                if k * CHUNK + i < NIBBLES:
                                    for p in T.unroll(pairs):
                                        u: T.let = (chain * tiles + tile) * pairs + p
                                        h: T.let = u // per_row * stride[0] + at_tap // kernel[1]
                                        t: T.let = u % per_row * 2 * stride[1] + at_tap % kernel[1]
                                        j: T.let = k * CHUNK + i
                                        table: T.let = tables[T.ramp(offsets[h, t, word, j % 2, j // 2], 1, ENTRIES)]
                                        for c in T.unroll(group):
                                            one: T.let = shuffle.look_up(
                                                table, indices[g * group + c, at_tap * words + word, j, wide]
                                            )
                                            found[p, c, wide] = tirx.Select(i == 0, one, found[p, c, wide] + one)
                            for p in T.unroll(pairs):
                                for c in T.unroll(group):
                                    sums[p, c, 0, wide] = sums[p, c, 0, wide] + found[p, c, wide]
                                    sums[p, c, 1, wide] = sums[p, c, 1, wide] + shuffle.upper_halves(found[p, c, wide])
                    for p in T.unroll(pairs):
                        for c in T.unroll(group):
                            sums[p, c, 0, wide] = shuffle.lower_halves(sums[p, c, 0, wide], sums[p, c, 1, wide])
                            for second in T.unroll(2):
                                for odd in T.unroll(2):
                                    counts[tile, p, c, second, odd, T.ramp(0, 1, half)] = tirx.if_then_else(
                                        tirx.all(block == 0, piece == 0),
                                        T.broadcast(T.uint16(0), half),
                                        counts[tile, p, c, second, odd, T.ramp(0, 1, half)],
                                    ) + shuffle.bytes_of(shuffle.halves(sums[p, c, second, wide]), odd)
                for tile in T.serial(tiles):
                    for p in T.unroll(pairs):
                        u: T.let = (chain * tiles + tile) * pairs + p
                        for second in T.unroll(2):
                            if u % per_row * 2 + second < job[1]:
                                n: T.let = destination(index, u, second)[0]
                                y: T.let = destination(index, u, second)[1]
                                z: T.let = destination(index, u, second)[2]
                                for c in T.unroll(group):
                                    for q in T.unroll(QUARTERS):
                                        result[n, y, z, T.ramp((g * group + c) * width + q * quarter, 1, quarter)] = (
                                            T.cast(
                                                T.broadcast(inside[u // per_row, u % per_row * 2 + second], quarter)
                                                - T.broadcast(2, quarter)
                                                * shuffle.words(
                                                    counts[tile, p, c, second, q % 2, T.ramp(0, 1, half)], q // 2
                                                ),
                                                f"{dtype}x{quarter}",
                                            )
                                        )

    return product
