"""Activation-gradient product by byte shuffles: nibbles of weights look up sums of the gradient's codes."""

from __future__ import annotations

from dataclasses import dataclass
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
    add_found,
    clear_sums,
    fill_pair_tables,
    fill_tables,
    fill_weight_indices,
    lookups_of_a_byte,
    lookups_of_a_half,
    plane_pairs,
    separate_sums,
    shuffles_pay,
)
from fqt_deploy.targets.cpu.register_tile import arguments_of, largest_divisor

BAND_BYTES = 1 << 18
"""Tables of one band: they are read from the second-level cache."""
BLOCK_LOOKUPS = 192
"""Lookups of a register between visits of its sums in memory: indices of a block stay in the first-level cache."""
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
        is_flat = kernel == [1, 1] and stride == [1, 1]
        row_bytes = (hw[1] + kernel[1] - 1) * words * NIBBLES * ENTRIES
        band = max(
            b for b in range(1, hw[0] + 1)
            if hw[0] % b == 0 and (b == 1 or (b + kernel[0] - 1) * row_bytes <= BAND_BYTES)
        )  # fmt: skip
        return _product(
            CodeConvolution(
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
            )
        )


@dataclass(frozen=True)
class CodeConvolution:
    """The transposed convolution of a gradient's codes, and how it is cut.

    Attributes:
        samples, gradient, bits, words: of the gradient: number, height and width, bits of a code, words of a plane.
        channels, hw: of the result: channels, height and width.
        kernel, stride, padding: of the forward convolution.
        is_flat: positions are taken one after another, whatever image they belong to: a product of matrices.
        job: rows and columns of positions of one job.
        shuffle: the processor's vectors.
    """

    samples: int
    gradient: list[int]
    bits: int
    words: int
    channels: int
    hw: list[int]
    kernel: list[int]
    stride: list[int]
    padding: list[int]
    is_flat: bool
    job: list[int]
    shuffle: ByteShuffle

    @property
    def taps(self) -> int:
        """Of the kernel."""
        return self.kernel[0] * self.kernel[1]

    @property
    def positions(self) -> int:
        """Of a job."""
        return self.job[0] * self.job[1]

    @property
    def jobs(self) -> int:
        """Independent ones."""
        return self.samples * self.hw[0] * self.hw[1] // self.positions

    @property
    def rows(self) -> int:
        """Positions of a tile."""
        return next(r for r in (4, 2, 1) if self.positions % r == 0)

    @property
    def tiles(self) -> int:
        """Tiles that read a block of the weight in turn, from the first-level cache."""
        return largest_divisor(self.positions // self.rows, 4)

    @property
    def vectors(self) -> int:
        """Registers of columns."""
        return self.channels // self.shuffle.width

    @property
    def group(self) -> int:
        """Registers of columns that read the tables of a tile in turn, from the first-level cache."""
        return largest_divisor(self.vectors, 4)

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


@T.macro
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


@T.macro
def _add_block(
    result: Any, tables: Any, code_sums: Any, indices: Any, index: Any,
    position: Any, vector: Any, tap: Any, word: Any, c: Any,
) -> None:  # fmt: skip
    """Add the products of a tile over the block that begins with ``tap`` and ``word`` to the result."""
    sums = T.alloc_buffer((c.rows, 2, c.shuffle.width // 2), "uint16")
    clear_sums(sums, c.rows, c.shuffle)
    for t, w, k in T.grid(c.block[0], c.block[1], NIBBLES // c.chunk):
        for r in T.unroll(c.rows):
            add_found(sums, r, c.found(tables, indices, position + r, vector, tap + t, word + w, k), c.shuffle)
    separate_sums(sums, c.rows, c.shuffle)
    for r in T.unroll(c.rows):
        n: T.let = c.place(index, position + r)[0]
        y: T.let = c.place(index, position + r)[1]
        z: T.let = c.place(index, position + r)[2]
        for q in T.unroll(QUARTERS):
            begin: T.let = vector * c.shuffle.width + q * c.shuffle.quarter
            before: T.let = tirx.if_then_else(
                tirx.all(tap == 0, word == 0),
                tirx.Broadcast(-c.tap_sum(code_sums, position + r), c.shuffle.quarter),
                result[n, y, z, T.ramp(begin, 1, c.shuffle.quarter)],
            )
            result[n, y, z, T.ramp(begin, 1, c.shuffle.quarter)] = before + T.broadcast(
                2, c.shuffle.quarter
            ) * c.shuffle.words(sums[r, q % 2, c.shuffle.half_lanes], q // 2)


def _product(c: CodeConvolution) -> tirx.PrimFunc:
    """The kernel."""

    @T.prim_func(s_tir=True)
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
            for group, chain in T.grid(c.vectors // c.group, c.positions // (c.rows * c.tiles)):
                for block, piece, tile, v in T.grid(c.taps // c.block[0], c.words // c.block[1], c.tiles, c.group):
                    _add_block(
                        result, tables, code_sums, indices, index, (chain * c.tiles + tile) * c.rows,
                        group * c.group + v, block * c.block[0], piece * c.block[1], c,
                    )  # fmt: skip

    return product
