"""Tensor-core instructions that multiply bits, one form for each generation of devices.

All of them compute fragments of 16 rows and 8 columns over eight words, and leave the results where the PTX ISA's
accumulators of ``m16n8`` lie. A thread reads the same words for each of them; what it does with them differs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.targets.cuda.bit_operand import Operand, Tile
from fqt_deploy.targets.cuda.kernel_builder import WARP, local, loop, sequence, store, with_buffers
from fqt_deploy.targets.cuda.shared_layout import WORDS, RowMajor, SharedLayout, WordMajor

_WIDE = (Tile(2, 2, 4, 8, 1.0), Tile(2, 2, 4, 4, 1.2), Tile(1, 4, 4, 8, 1.1), Tile(1, 4, 4, 2, 1.6))
TILES: dict[int, tuple[Tile, ...]] = {
    1: (*_WIDE, Tile(2, 2, 2, 4, 1.6)),
    2: (*_WIDE, Tile(2, 2, 2, 4, 1.6)),
    3: (Tile(2, 2, 3, 8, 1.0), Tile(4, 1, 3, 8, 1.1), Tile(1, 4, 3, 8, 1.1), Tile(1, 4, 3, 2, 1.6)),
    4: _WIDE,
    8: (Tile(1, 4, 8, 4, 1.1), Tile(1, 4, 8, 2, 1.4)),
}
"""Number of planes -> tiles: a warp's fragments are a multiple of the planes; two stages fit 48 KiB."""


class WarpForm(ABC):
    """The form that the instructions of one warp have in common."""

    tiles: ClassVar[Mapping[int, tuple[Tile, ...]]] = TILES
    asynchronous = True
    differences = False
    merges_planes = False

    def layout(self, operand: Operand, height: int) -> SharedLayout:
        """The layout of the operand as it is in memory: by word, or by row."""
        return (WordMajor if operand.word_major else RowMajor)(height, operand.chunk)

    def publish(self) -> Any:
        """Nothing to do: the barrier alone makes copies visible to the instructions of a warp."""
        return None

    def complete(self) -> Any:
        """Nothing to do: the instructions of a warp are complete when they return."""
        return None

    def first_row(self, tile: Tile, planes: int, down: Any, group: int) -> Any:
        """The first row of a group of fragments; a warp's rows are contiguous."""
        return (down * (tile.fragments_down // planes) + group) * 16

    def multiply(
        self, tile: Tile, planes: int, sides: tuple[tirx.Buffer, tirx.Buffer], layouts: tuple[Any, Any], counts: Any,
        slot: Any, thread: Any,
    ) -> Any:  # fmt: skip
        """Add the products of one stage to the counts, eight words at a time."""
        (a, b), (rows, columns) = sides, layouts
        down, across = tile.warp(thread)
        group, lane = thread % WARP // 4, thread % 4
        left = local((tile.fragments_down, 4), "uint32", "left")
        right = local((tile.fragments_across, 2), "uint32", "right")

        def load_left(i: int, r: int, word: int) -> Any:
            first = self.first_row(tile, planes, down, i // planes) + i % planes * (tile.height // planes)
            value = a[(slot, *rows.at(first + group + r % 2 * 8, lane + (word + r // 2 * 4)))]
            return store(left, tirx.reinterpret("uint32", value), i, r)

        def load_right(j: int, r: int, word: int) -> Any:
            column = across * (tile.fragments_across * 8) + j * 8 + group
            value = b[(slot, *columns.at(column, lane + (word + r * 4)))]
            return store(right, tirx.reinterpret("uint32", value), j, r)

        def eight(word: int) -> Any:
            return with_buffers(
                [left, right],
                sequence(
                    *(load_left(i, r, word) for i in range(tile.fragments_down) for r in range(4)),
                    *(load_right(j, r, word) for j in range(tile.fragments_across) for r in range(2)),
                    self.fragments(tile, planes, left, right, counts),
                ),
            )

        return sequence(*(eight(word) for word in range(0, WORDS, 8)))

    @abstractmethod
    def fragments(self, tile: Tile, planes: int, left: tirx.Buffer, right: tirx.Buffer, counts: tirx.Buffer) -> Any:
        """Add the products of all fragments in registers to the counts."""


class PairForm(WarpForm):
    """The form of instructions that multiply one pair of fragments as they lie in registers."""

    def fragments(self, tile: Tile, planes: int, left: tirx.Buffer, right: tirx.Buffer, counts: tirx.Buffer) -> Any:
        """Add the product of every pair of fragments to the counts."""
        pairs = ((i, j) for i in range(tile.fragments_down) for j in range(tile.fragments_across))
        return sequence(*(self.pair(left, i, right, j, counts) for i, j in pairs))

    @abstractmethod
    def pair(self, left: tirx.Buffer, i: int, right: tirx.Buffer, j: int, counts: tirx.Buffer) -> Any:
        """Add the product of one pair of fragments to the counts."""


class AndForm(PairForm):
    """AND and popcount, from sm_80 to sm_90a: one instruction a pair."""

    def pair(self, left: tirx.Buffer, i: int, right: tirx.Buffer, j: int, counts: tirx.Buffer) -> Any:
        """Add the product of one pair of fragments to the counts, by ``m16n8k256``."""
        sums = [counts[i, j, r] for r in range(4)]
        operands = [*(left[i, r] for r in range(4)), *(right[j, r] for r in range(2))]
        call = T.ptx["mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc"]
        return tirx.Evaluate(call(*sums, *operands, *sums))


class XorForm(PairForm):
    """XOR and popcount on sm_75: four instructions of 8 rows and four words; no asynchronous copies there."""

    asynchronous = False
    differences = True

    def pair(self, left: tirx.Buffer, i: int, right: tirx.Buffer, j: int, counts: tirx.Buffer) -> Any:
        """Add the product of a pair of fragments: ``m8n8k128`` for either half of the rows and of the words."""
        call = T.ptx["mma.sync.aligned.m8n8k128.row.col.s32.b1.b1.s32.xor.popc"]

        def quarter(half: int, k: int) -> Any:
            sums = [counts[i, j, 2 * half + r] for r in range(2)]
            return tirx.Evaluate(call(*sums, left[i, half + 2 * k], right[j, k], *sums))

        return sequence(*(quarter(half, k) for k in range(2) for half in range(2)))


class Int8Form(WarpForm):
    """The form by bytes on sm_100 and later, whose tensor cores have no bits.

    Byte l of register s holds bit ``s + 8 l`` of a word, on both sides: an order of the contraction like any other. The
    planes of a row become one byte of its code, so they cost one product.
    """

    merges_planes = True

    def fragments(self, tile: Tile, planes: int, left: tirx.Buffer, right: tirx.Buffer, counts: tirx.Buffer) -> Any:
        """Add the products of fragments: ``m16n8k32`` of codes and bits, for each of the eight registers of bytes."""
        groups = tile.fragments_down // planes
        codes = local((groups, 4), "uint32", "codes")
        bits = local((tile.fragments_across, 2), "uint32", "bits")
        ones = tirx.const(0x01010101, "uint32")
        call = T.ptx["mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32"]

        def unpacked(word: Any, shift: Any) -> Any:
            return (word >> shift) & ones

        def code(g: int, r: int, shift: Any) -> Any:
            total = unpacked(left[g * planes, r], shift)
            for plane in range(1, planes):
                total = total | unpacked(left[g * planes + plane, r], shift) << tirx.const(plane, "uint32")
            return store(codes, total, g, r)

        def product(g: int, j: int) -> Any:
            sums = [counts[g, j, r] for r in range(4)]
            operands = [*(codes[g, r] for r in range(4)), *(bits[j, r] for r in range(2))]
            return tirx.Evaluate(call(*sums, *operands, *sums))

        def register(s: Any) -> Any:
            shift = s.astype("uint32")
            return sequence(
                *(code(g, r, shift) for g in range(groups) for r in range(4)),
                *(
                    store(bits, unpacked(right[j, r], shift), j, r)
                    for j in range(tile.fragments_across)
                    for r in range(2)
                ),
                *(product(g, j) for g in range(groups) for j in range(tile.fragments_across)),
            )

        return with_buffers([codes, bits], loop(8, register))
