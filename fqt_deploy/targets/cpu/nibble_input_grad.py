"""Activation-gradient product by byte shuffles: nibbles of weights look up sums of the gradient's codes."""

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
    fill_weight_indices,
    lookups_of_a_byte,
    lookups_of_a_half,
    pair_nibbles,
    shuffles_pay,
    subset_sums,
)
from fqt_deploy.targets.cpu.register_tile import arguments_of, largest_divisor

BAND_BYTES = 1 << 18
"""Tables of one band: they are read from the second-level cache."""
BLOCK_LOOKUPS = 192
"""Lookups of a register between visits of its sums in memory: indices of a block stay in the first-level cache."""
REGISTERS = 4
"""Registers of columns that read the same tables in turn."""
JOB_POSITIONS = 64
"""Positions of a job where rows of an image have no meaning: one tap."""


class NibbleInputGradRule:
    """Takes ``bitplane_conv2d_input_grad`` of up to 4 bits, a multiple of 16 input channels."""

    ops: ClassVar[frozenset[str]] = frozenset({"bitplane_conv2d_input_grad"})

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """A hand-written loop nest; gradients that do not exist, between strides or in padding, are empty tables."""
        arguments = arguments_of(function)
        samples, oh, ow, bits, words = (int(d) for d in function.params[0].shape)
        if arguments is None or arguments[2] % PANEL or not shuffles_pay(features, bits):
            return None
        _, _, channels, _, hw, kernel, stride, padding = arguments
        width = next(w for w in (64, 32, 16) if w <= features.vector_bits // 8 and channels % w == 0)
        if kernel == [1, 1] and stride == [1, 1]:
            job = [1, largest_divisor(samples * oh * ow, JOB_POSITIONS)]
        else:
            band = max(
                b for b in range(1, hw[0] + 1)
                if hw[0] % b == 0
                and (b == 1 or (b + kernel[0] - 1) * (hw[1] + kernel[1] - 1) * words * NIBBLES * ENTRIES <= BAND_BYTES)
            )  # fmt: skip
            job = [band, hw[1]]
        return _product(
            samples, [oh, ow], bits, words, channels, hw, kernel, stride, padding, job,
            ByteShuffle(width, features.is_x86),
        )  # fmt: skip


def _product(
    samples: int, out: list[int], bits: int, words: int, channels: int, hw: list[int], kernel: list[int],
    stride: list[int], padding: list[int], job: list[int], shuffle: ByteShuffle,
) -> tirx.PrimFunc:  # fmt: skip
    """The kernel; each job makes ``job`` rows and columns of positions."""
    height, breadth = job[0] + kernel[0] - 1, job[1] + kernel[1] - 1
    border = [kernel[0] - 1 - padding[0], kernel[1] - 1 - padding[1]]
    taps, width, quarter = kernel[0] * kernel[1], shuffle.width, shuffle.quarter
    jobs, positions = samples * hw[0] * hw[1] // (job[0] * job[1]), job[0] * job[1]
    rows = next(r for r in (4, 2, 1) if positions % r == 0)
    tiles = largest_divisor(positions // rows, 4)
    vectors = channels // width
    group = largest_divisor(vectors, REGISTERS)
    part = largest_divisor(words, lookups_of_a_half(bits) // NIBBLES)
    block_taps = max(
        t for t in range(1, taps + 1) if taps % t == 0 and (t == 1 or t * words * NIBBLES <= BLOCK_LOOKUPS)
    )
    if part < words:
        block_taps = 1
    chunk, plane_pairs = lookups_of_a_byte(bits), -(-bits // 2)

    def place(job_index: Any, h: Any, v: Any) -> tuple[Any, Any, Any]:
        """Sample, row and column of a position of a job."""
        at = job_index * positions + h * job[1] + v
        return at // (hw[0] * hw[1]), at // hw[1] % hw[0], at % hw[1]

    def code_sum(planes: Any, n: Any, y: Any, z: Any, word: Any) -> Any:
        total: Any = tirx.popcount(planes[n, y, z, 0, word])
        for p in range(1, bits):
            total = total + (tirx.popcount(planes[n, y, z, p, word]) << p)
        return total

    def tap_sum(sums: Any, position: Any) -> Any:
        total: Any = None
        for tap in range(taps):
            value = sums[position // job[1] + tap // kernel[1], position % job[1] + tap % kernel[1]]
            total = value if total is None else total + value
        return total

    def plane(planes: Any, n: Any, y: Any, z: Any, p: Any, word: Any) -> Any:
        return tirx.if_then_else(p < bits, planes[n, y, z, T.min(p, bits - 1), word], 0)

    def found_sum(tables: Any, indices: Any, position: Any, vector: Any, tap: Any, w: Any, c: Any) -> Any:
        total: Any = None
        flipped = taps - 1 - tap
        for i in range(chunk):
            j = c * chunk + i
            table = tables[
                position // job[1] + tap // kernel[1], position % job[1] + tap % kernel[1], w, j, T.ramp(0, 1, ENTRIES)
            ]
            found = shuffle.look_up(table, indices[vector, flipped * words + w, j, T.ramp(0, 1, width)])
            total = found if total is None else total + found
        return total

    @T.prim_func(s_tir=True)
    def product(
        planes: T.Buffer((samples, out[0], out[1], bits, words), "int32"),
        weight: T.Buffer((channels // PANEL, taps * words, PANEL), "int32"),
        result: T.Buffer((samples, hw[0], hw[1], channels), "int32"),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        pair_tables = T.alloc_buffer((plane_pairs, PAIR_TABLES, ENTRIES), "uint8")
        indices = T.alloc_buffer((vectors, taps * words, NIBBLES, width), "uint8")
        fill_pair_tables(pair_tables, plane_pairs, bits)
        fill_weight_indices(indices, weight, shuffle, vectors, taps * words)
        for index in T.parallel(jobs):
            tables = T.alloc_buffer((height, breadth, words, NIBBLES, ENTRIES), "uint8")
            sums = T.alloc_buffer((height, breadth), "int32")
            for h, v in T.grid(height, breadth):
                n: T.let = place(index, 0, 0)[0] if taps > 1 else place(index, h, v)[0]
                y: T.let = place(index, 0, 0)[1] + h - border[0] if taps > 1 else place(index, h, v)[1]
                z: T.let = v - border[1] if taps > 1 else place(index, h, v)[2]
                sums[h, v] = 0
                if (
                    y >= 0 and y < out[0] * stride[0] and z >= 0 and z < out[1] * stride[1]
                    and y % stride[0] == 0 and z % stride[1] == 0
                ):  # fmt: skip
                    for w in T.serial(words):
                        pairs = T.alloc_buffer((plane_pairs, 2), "int32")
                        for p in T.unroll(plane_pairs):
                            for parity in T.unroll(2):
                                pairs[p, parity] = pair_nibbles(
                                    plane(planes, n, y // stride[0], z // stride[1], 2 * p, w),
                                    plane(planes, n, y // stride[0], z // stride[1], 2 * p + 1, w),
                                    parity,
                                )
                        for j in T.unroll(NIBBLES):
                            tables[h, v, w, j, T.ramp(0, 1, ENTRIES)] = subset_sums(pair_tables, pairs, j, plane_pairs)
                        sums[h, v] = sums[h, v] + code_sum(planes, n, y // stride[0], z // stride[1], w)
                else:
                    for w, j in T.grid(words, NIBBLES):
                        tables[h, v, w, j, T.ramp(0, 1, ENTRIES)] = T.broadcast(T.uint8(0), ENTRIES)
            for g, chain, block, piece, tile, c in T.grid(
                vectors // group, positions // (rows * tiles), taps // block_taps, words // part, tiles, group
            ):
                found = T.alloc_buffer((rows, 2, width // 2), "uint16")
                first: T.let = (chain * tiles + tile) * rows
                for r in T.unroll(rows):
                    for odd in T.unroll(2):
                        found[r, odd, T.ramp(0, 1, width // 2)] = T.broadcast(T.uint16(0), width // 2)
                for t, w in T.grid(block_taps, part):
                    for k in T.unroll(NIBBLES // chunk):
                        for r in T.unroll(rows):
                            more: T.let = found_sum(
                                tables, indices, first + r, g * group + c, block * block_taps + t, piece * part + w, k
                            )
                            found[r, 0, T.ramp(0, 1, width // 2)] = found[
                                r, 0, T.ramp(0, 1, width // 2)
                            ] + shuffle.halves(more)
                            found[r, 1, T.ramp(0, 1, width // 2)] = found[
                                r, 1, T.ramp(0, 1, width // 2)
                            ] + shuffle.odd_bytes(shuffle.halves(more))
                for r in T.unroll(rows):
                    found[r, 0, T.ramp(0, 1, width // 2)] = shuffle.even_bytes(
                        found[r, 0, T.ramp(0, 1, width // 2)], found[r, 1, T.ramp(0, 1, width // 2)]
                    )
                    n: T.let = place(index, 0, first + r)[0]
                    y: T.let = place(index, 0, first + r)[1]
                    z: T.let = place(index, 0, first + r)[2]
                    for q in T.unroll(QUARTERS):
                        at: T.let = (g * group + c) * width + q * quarter
                        before: T.let = tirx.if_then_else(
                            tirx.all(block == 0, piece == 0),
                            tirx.Broadcast(-tap_sum(sums, first + r), quarter),
                            result[n, y, z, T.ramp(at, 1, quarter)],
                        )
                        result[n, y, z, T.ramp(at, 1, quarter)] = before + T.broadcast(2, quarter) * shuffle.words(
                            found[r, q % 2, T.ramp(0, 1, width // 2)], q // 2
                        )

    return product
