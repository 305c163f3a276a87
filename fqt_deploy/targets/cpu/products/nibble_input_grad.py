"""Activation-gradient product by byte shuffles: nibbles of weights look up sums of the gradient's codes."""

from __future__ import annotations

from typing import Any, ClassVar

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.ops.lib.packed_words import PANEL
from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.nibble_convolution import ShuffleRule
from fqt_deploy.targets.cpu.products.nibble_input_grad_cut import CodeConvolution
from fqt_deploy.targets.cpu.products.nibble_table import (
    ENTRIES,
    NIBBLES,
    PAIR_TABLES,
    QUARTERS,
    ByteShuffle,
    add_found,
    clear_sums,
    fill_pair_tables,
    fill_tables,
    fill_weight_indices,
    plane_pairs,
    separate_sums,
    shuffles_pay,
)
from fqt_deploy.targets.cpu.products.register_tile import arguments_of, largest_divisor
from fqt_deploy.targets.tuning_log import Tile

BAND_BYTES = 1 << 18
"""Tables of one band: they are read from the second-level cache."""
JOB_POSITIONS = 64
"""Positions of a job where rows of an image have no meaning: one tap."""


class NibbleInputGradRule(ShuffleRule):
    """Takes ``bitplane_conv2d_input_grad`` of up to 4 bits, a multiple of 16 input channels."""

    ops: ClassVar[frozenset[str]] = frozenset({"bitplane_conv2d_input_grad"})
    choices: ClassVar[tuple[Tile, ...]] = ((4, 16), (4, 4), (4, 32), (2, 16), (2, 32), (1, 16), (1, 32))
    """Registers of columns that look up one table, positions that read a block of the weight in turn."""

    def product(self, cut: Any) -> tirx.PrimFunc:
        """Tables, indices of the weight, then jobs in parallel."""
        return _product(cut)

    def cut(self, function: tirx.PrimFunc, features: CpuFeatures, tile: Tile) -> CodeConvolution | None:
        """Bands of image rows are jobs; where no gradient is, between strides or in padding, tables are empty."""
        arguments = arguments_of(function)
        samples, oh, ow, bits, words = (int(d) for d in function.params[0].shape)
        if arguments is None or arguments[2] % PANEL or not shuffles_pay(features, bits):
            return None
        _, _, channels, _, hw, kernel, stride, padding = arguments
        is_flat = kernel == [1, 1] and stride == [1, 1]
        row_bytes = (hw[1] + kernel[1] - 1) * words * NIBBLES * ENTRIES
        band = max(
            b for b in range(1, hw[0] + 1)
            if hw[0] % b == 0 and (b == 1 or (b + kernel[0] - 1) * row_bytes <= BAND_BYTES)
        )  # fmt: skip
        return CodeConvolution(
            samples=samples,
            gradient=[oh, ow],
            bits=bits,
            words=words,
            channels=channels,
            hw=hw,
            kernel=kernel,
            stride=stride,
            padding=padding,
            is_flat=is_flat,
            job=[1, largest_divisor(samples * oh * ow, JOB_POSITIONS)] if is_flat else [band, hw[1]],
            shuffle=ByteShuffle.for_columns(channels, features),
            tile=tile,
        )


@script.macro
def _build_tables(tables: Any, sums: Any, planes: Any, pair_tables: Any, index: Any, c: Any) -> None:
    """Tables and sums of the codes of every gradient that a job reads."""
    for h, v in T.grid(c.extent[0], c.extent[1]):
        sums[h, v] = 0
        if c.exists(c.source(index, h, v)[1], c.source(index, h, v)[2]):
            for w in T.serial(c.words):
                codes = T.alloc_buffer((2 * plane_pairs(c.bits),), "int32")
                for p in T.unroll(2 * plane_pairs(c.bits)):
                    codes[p] = c.plane(planes, index, h, v, w, p)
                fill_tables(tables, c.table_at(h, v, w), pair_tables, codes, c.bits)
                sums[h, v] = sums[h, v] + c.code_sum(planes, index, h, v, w)
        else:
            for w, j in T.grid(c.words, NIBBLES):
                tables[c.table_at(h, v, w), j, T.ramp(0, 1, ENTRIES)] = T.broadcast(T.uint8(0), ENTRIES)


@script.macro
def _add_block(
    result: Any, tables: Any, code_sums: Any, indices: Any, index: Any,
    position: Any, vector: Any, tap: Any, word: Any, c: Any,
) -> None:  # fmt: skip
    """Add the products of a position over the block that begins with ``tap`` and ``word`` to the result."""
    sums = T.alloc_buffer((c.group, 2, c.shuffle.width // 2), "uint16")
    clear_sums(sums, c.group, c.shuffle)
    for t, w, k in T.grid(c.block[0], c.block[1], NIBBLES // c.chunk):
        for v in T.unroll(c.group):
            add_found(sums, v, c.found(tables, indices, position, vector + v, tap + t, word + w, k), c.shuffle)
    separate_sums(sums, c.group, c.shuffle)
    n: T.let = c.place(index, position)[0]
    y: T.let = c.place(index, position)[1]
    z: T.let = c.place(index, position)[2]
    for v in T.unroll(c.group):
        for q in T.unroll(QUARTERS):
            begin: T.let = (vector + v) * c.shuffle.width + q * c.shuffle.quarter
            before: T.let = tirx.if_then_else(
                tirx.all(tap == 0, word == 0),
                tirx.Broadcast(-c.tap_sum(code_sums, position), c.shuffle.quarter),
                result[n, y, z, T.ramp(begin, 1, c.shuffle.quarter)],
            )
            result[n, y, z, T.ramp(begin, 1, c.shuffle.quarter)] = before + T.broadcast(
                2, c.shuffle.quarter
            ) * c.shuffle.words(sums[v, q % 2, c.shuffle.half_lanes], q // 2)


def _product(c: CodeConvolution) -> tirx.PrimFunc:
    """The kernel."""

    @script.prim_func(s_tir=True)
    def product(
        planes: T.Buffer((c.samples, c.gradient[0], c.gradient[1], c.bits, c.words), "int32"),
        weight: T.Buffer((c.channels // PANEL, c.taps * c.words, PANEL), "int32"),
        result: T.Buffer((c.samples, c.hw[0], c.hw[1], c.channels), "int32"),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        pair_tables = T.alloc_buffer((plane_pairs(c.bits), PAIR_TABLES, ENTRIES), "uint8")
        indices = T.alloc_buffer((c.vectors, c.taps * c.words, NIBBLES, c.shuffle.width), "uint8")
        fill_pair_tables(pair_tables, c.bits)
        fill_weight_indices(indices, weight, c.shuffle, c.vectors, c.taps * c.words)
        for index in T.parallel(c.jobs):
            tables = T.alloc_buffer((c.extent[0] * c.extent[1] * c.words, NIBBLES, ENTRIES), "uint8")
            code_sums = T.alloc_buffer((c.extent[0], c.extent[1]), "int32")
            _build_tables(tables, code_sums, planes, pair_tables, index, c)
            for group, run in T.grid(c.vectors // c.group, c.positions // c.run):
                for block, piece, i in T.grid(c.taps // c.block[0], c.words // c.block[1], c.run):
                    _add_block(
                        result, tables, code_sums, indices, index, run * c.run + i,
                        group * c.group, block * c.block[0], piece * c.block[1], c,
                    )  # fmt: skip

    return product
