"""Activation-gradient product by byte shuffles: nibbles of weights look up sums of the gradient's codes."""

from __future__ import annotations

from typing import Any, ClassVar

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.ops.lib.packed_words import PANEL
from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.byte_shuffle.input_gradient_cut import CodeConvolution
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
    fill_weight_indices,
    plane_pairs,
    separate_sums,
    shuffles_pay,
)
from fqt_deploy.targets.cpu.products.byte_shuffle.shuffled_convolution import ShuffleForm, job_extents
from fqt_deploy.targets.products import BitInputGradient
from fqt_deploy.targets.tuning_log import Tile

BAND_BYTES = 1 << 18
"""Upper bound of the bytes of one band's tables, which are read from the second-level cache."""


class ShuffleInputGradient(ShuffleForm[BitInputGradient]):
    """Bands of image rows are jobs; where no gradient is, between strides or in padding, tables are empty."""

    choices: ClassVar[tuple[Tile, ...]] = ((4, 16), (4, 4), (4, 32), (2, 16), (2, 32), (1, 16), (1, 32))
    """Tiles worth measuring: registers of columns that look up one table, positions that read a block of the weight in
    turn.
    """

    def accepts(self, product: BitInputGradient, features: CpuFeatures) -> bool:
        """Whole panels, where a byte shuffle is the best there is for so many bits."""
        return product.has_whole_panels and shuffles_pay(features, product.bits)

    def cut(self, product: BitInputGradient, tile: Tile, features: CpuFeatures) -> CodeConvolution:
        """The product cut into bands with as many rows in a band as tables in the cache reach for."""
        (height, width), (kernel_h, kernel_w) = product.image, product.kernel
        row_bytes = (width + kernel_w - 1) * product.words * NIBBLES * ENTRIES
        band = max(
            b for b in range(1, height + 1)
            if height % b == 0 and (b == 1 or (b + kernel_h - 1) * row_bytes <= BAND_BYTES)
        )  # fmt: skip
        shuffle = ByteShuffle.for_columns(product.columns, features)
        return CodeConvolution(product, job_extents(product, band, width), shuffle, tile)

    def kernel(self, product: BitInputGradient, tile: Tile, features: CpuFeatures) -> tirx.PrimFunc:
        """Tables, indices of the weight, then jobs in parallel."""
        return _kernel(self.cut(product, tile, features))


@script.macro
def _build_tables(tables: Any, sums: Any, planes: Any, pair_tables: Any, index: Any, c: Any) -> None:
    """Tables and sums of the codes of every gradient that a job reads."""
    for h, v in T.grid(c.extent[0], c.extent[1]):
        sums[h, v] = 0
        if c.product.has_gradient(c.source(index, h, v)[1], c.source(index, h, v)[2]):
            for w in T.serial(c.product.words):
                codes = T.alloc_buffer((2 * plane_pairs(c.product.bits),), "int32")
                for p in T.unroll(2 * plane_pairs(c.product.bits)):
                    codes[p] = c.plane(planes, index, h, v, w, p)
                fill_tables(tables, c.table_at(h, v, w), pair_tables, codes, c.product.bits)
                sums[h, v] = sums[h, v] + c.code_sum(planes, index, h, v, w)
        else:
            for w, j in T.grid(c.product.words, NIBBLES):
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


def _kernel(c: CodeConvolution) -> tirx.PrimFunc:
    """The TIR function of the gradient that is cut as ``c`` says."""
    p = c.product

    @script.prim_func(s_tir=True)
    def product(
        planes: T.Buffer((p.samples, p.output[0], p.output[1], p.bits, p.words), "int32"),
        weight: T.Buffer((p.panels, p.contraction, PANEL), "int32"),
        result: T.Buffer((p.samples, p.image[0], p.image[1], p.columns), "int32"),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        pair_tables = T.alloc_buffer((plane_pairs(p.bits), PAIR_TABLES, ENTRIES), "uint8")
        indices = T.alloc_buffer((c.vectors, p.contraction, NIBBLES, c.shuffle.width), "uint8")
        fill_pair_tables(pair_tables, p.bits)
        fill_weight_indices(indices, weight, c.shuffle, c.vectors, p.contraction)
        for index in T.parallel(c.jobs):
            tables = T.alloc_buffer((c.extent[0] * c.extent[1] * p.words, NIBBLES, ENTRIES), "uint8")
            code_sums = T.alloc_buffer((c.extent[0], c.extent[1]), "int32")
            _build_tables(tables, code_sums, planes, pair_tables, index, c)
            for group, run in T.grid(c.vectors // c.group, c.turns // c.run):
                for block, piece, i in T.grid(p.taps // c.block[0], p.words // c.block[1], c.run):
                    _add_block(
                        result, tables, code_sums, indices, index, run * c.run + i,
                        group * c.group, block * c.block[0], piece * c.block[1], c,
                    )  # fmt: skip

    return product
