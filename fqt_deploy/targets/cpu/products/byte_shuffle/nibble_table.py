"""Products of small codes and bits by table: a byte shuffle looks up the sums of four codes that four bits choose.

Four codes have sixteen subset sums, one table of sixteen bytes. Four bits of the other operand, a nibble, say which
sum is meant, and a byte shuffle looks up one for every byte of a register: 128 multiply-accumulates in one instruction
on 256 bits, whatever the width of the codes. x86 processors since 2006 and 64-bit ARM processors have one; where there
is a vector popcount or a byte permutation of whole registers, other forms are faster.

Columns are what bytes of a register stand for, rows what has tables. Four registers of 32-bit words, each of a quarter
of the columns, become eight registers of nibbles by shifts and masks alone, so that byte ``4 l + q`` is column ``l`` of
quarter ``q``. Sums come back in the same way: byte ``q`` of each 32-bit lane is a run of columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.ops.lib.packed_words import PANEL
from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.digits import DIGIT_BITS

NIBBLES = 8
"""Number of nibbles in one word."""
ENTRIES = 16
"""Number of entries of one table, a byte each."""
QUARTERS = 4
PAIR_TABLES = 256
"""Number of pairs of nibbles; for each, what two bit-planes with these nibbles add to the subset sums is kept."""
_LOW = 0x0F0F0F0F
_SHUFFLES = {16: "llvm.x86.ssse3.pshuf.b.128", 32: "llvm.x86.avx2.pshuf.b", 64: "llvm.x86.avx512.pshuf.b.512"}
_ARM_SHUFFLE = "llvm.aarch64.neon.tbl1.v16i8"


def shuffles_pay(features: CpuFeatures, bits: int) -> bool:
    """Whether this processor has a byte shuffle and no faster way to multiply ``bits``-bit codes with bits."""
    return features.has_byte_shuffle and not features.has_vpopcnt and bits <= DIGIT_BITS


def lookups_of_a_byte(bits: int) -> int:
    """Upper bound of the sums of four codes that fit together into a byte; at most the eight of a word."""
    return min(NIBBLES, 255 // (4 * ((1 << bits) - 1)))


def lookups_of_a_half(bits: int) -> int:
    """Upper bound of the sums of four codes that fit together into 16 bits."""
    return 65535 // (4 * ((1 << bits) - 1))


def plane_pairs(bits: int) -> int:
    """Pairs of bit-planes, each looked up at once where a table is built."""
    return -(-bits // 2)


def pair_nibbles(low: Any, high: Any, parity: Any) -> Any:
    """Nibbles of two words, paired: byte q has both nibbles 2 q + ``parity``."""
    return ((low >> (parity * 4)) & _LOW) | (((high >> (parity * 4)) & _LOW) << 4)


def _pair_table(pair: Any, pair_of_planes: Any) -> Any:
    """The share that the nibbles of two bit-planes, the lower plane's in the lower half, have in the subset sums."""
    subsets = T.cast(T.ramp(0, 1, ENTRIES), f"uint8x{ENTRIES}")

    def weighted(nibble: Any, plane: Any) -> Any:
        count = tirx.popcount(_splat(T.cast(nibble, "uint8"), ENTRIES) & subsets)
        return count * _splat(T.cast(1 << plane, "uint8"), ENTRIES)

    return weighted(pair & 15, 2 * pair_of_planes) + weighted(pair >> 4, 2 * pair_of_planes + 1)


@dataclass(frozen=True)
class ByteShuffle:
    """The vectors of one processor, and what is done with them.

    Attributes:
        width: bytes of a register: columns that one shuffle looks up.
        is_x86: whether the shuffle is x86's or ARM's.
    """

    width: int
    is_x86: bool

    @classmethod
    def for_columns(cls, columns: int, features: CpuFeatures) -> ByteShuffle:
        """The widest vectors that ``columns``, a multiple of 16, are a multiple of."""
        return cls(
            next(w for w in (64, 32, 16) if w <= features.vector_bits // 8 and columns % w == 0), features.is_x86
        )

    @property
    def quarter(self) -> int:
        """Number of words in a register."""
        return self.width // QUARTERS

    @property
    def byte_lanes(self) -> Any:
        """Index vector of all bytes of a register."""
        return T.ramp(0, 1, self.width)

    @property
    def half_lanes(self) -> Any:
        """Index vector of all 16-bit halves of the words of a register."""
        return T.ramp(0, 1, self.width // 2)

    @property
    def word_lanes(self) -> Any:
        """Index vector of all words of a register."""
        return T.ramp(0, 1, self.quarter)

    def nibble(self, quarters: Any, j: Any) -> Any:
        """Nibble ``j`` of each word, lowest first.

        Args:
            quarters: int32 buffer [4, words of a register]: the words of a quarter of the columns each.
            j: which of the eight.

        Returns:
            uint8 vector, byte ``4 l + q`` of word ``l`` of quarter ``q``.
        """

        def mixed(x: Any, y: Any, begin: Any, mask: int, size: int) -> Any:
            """Words whose fields of ``size`` bits are x's and y's in turn, those that ``mask`` keeps from ``begin``."""
            keep = _splat(mask, self.quarter)
            low, high = ((words >> _splat(begin, self.quarter)) & keep for words in (x, y))
            return low | (high << _splat(size, self.quarter))

        a, b, c, d = (quarters[q, self.word_lanes] for q in range(QUARTERS))
        halves = [mixed(x, y, j // 4 * 16, 0xFFFF, 16) for x, y in ((a, c), (b, d))]
        octets = mixed(halves[0], halves[1], j // 2 % 2 * 8, 0x00FF00FF, 8)
        return self._as((octets >> _splat(j % 2 * 4, self.quarter)) & _splat(_LOW, self.quarter), "uint8")

    def look_up(self, table: Any, indices: Any) -> Any:
        """The entries of ``table``, uint8x16, that each of the bytes ``indices`` names."""
        if self.width > ENTRIES:
            copies = [table] * (self.width // ENTRIES)
            table = tirx.Shuffle(copies, [tirx.const(i, "int32") for i in range(self.width)])
        name = _SHUFFLES[self.width] if self.is_x86 else _ARM_SHUFFLE
        return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(name), table, indices, dtype=f"uint8x{self.width}")

    def halves(self, found: Any) -> Any:
        """A uint8 vector as uint16 vector: even bytes with odd ones above them."""
        return self._as(found, "uint16")

    def upper_halves(self, found: Any) -> Any:
        """The upper four bits of each byte."""
        shifted = self._as(found, "uint16") >> _splat(tirx.const(4, "uint16"), self.width // 2)
        return self._as(shifted, "uint8") & _splat(tirx.const(15, "uint8"), self.width)

    def lower_halves(self, whole: Any, upper: Any) -> Any:
        """Sums of the lower four bits of bytes, of sums of whole bytes and sums of their upper four bits."""
        return whole - upper * _splat(tirx.const(16, "uint8"), self.width)

    def bytes_of(self, halves: Any, odd: Any) -> Any:
        """The lower or the upper byte of each 16-bit lane."""
        shifted = halves >> _splat(T.cast(odd * 8, "uint16"), self.width // 2)
        return shifted & _splat(tirx.const(0xFF, "uint16"), self.width // 2)

    def odd_bytes(self, halves: Any) -> Any:
        """The upper byte of each 16-bit lane."""
        return halves >> _splat(tirx.const(8, "uint16"), self.width // 2)

    def even_bytes(self, halves: Any, odd: Any) -> Any:
        """Sums of the lower bytes, of sums of whole 16-bit lanes and sums of their upper bytes."""
        return halves - (odd << _splat(tirx.const(8, "uint16"), self.width // 2))

    def words(self, halves: Any, upper: Any) -> Any:
        """The lower or the upper 16-bit lane of each word as int32."""
        shifted = self._as(halves, "int32") >> _splat(upper * 16, self.quarter)
        return shifted & _splat(0xFFFF, self.quarter)

    def _as(self, vector: Any, dtype: str) -> Any:
        lanes = self.width * 8 // int(dtype.removeprefix("u").removeprefix("int"))
        return T.reinterpret(vector, dtype=f"{dtype}x{lanes}")


def _splat(value: Any, lanes: int) -> Any:
    value = tirx.const(value, "int32") if isinstance(value, int) else value
    return tirx.Broadcast(value, lanes) if lanes > 1 else value


def _subset_sums(pair_tables: Any, pairs: Any, j: Any, bits: int) -> Any:
    """Table of the codes of nibble ``j``: the shares of all pairs of planes."""
    total: Any = None
    for p in range(plane_pairs(bits)):
        pair = (pairs[p, j % 2] >> (j // 2 * 8)) & (PAIR_TABLES - 1)
        share = pair_tables[p, pair, T.ramp(0, 1, ENTRIES)]
        total = share if total is None else total + share
    return total


@script.macro
def fill_pair_tables(pair_tables: Any, bits: int) -> None:
    """Fill [pair of planes, pair of nibbles, entry]; with one plane there are only sixteen pairs."""
    for p in T.unroll(plane_pairs(bits)):
        for pair in T.serial(PAIR_TABLES if bits > 1 else ENTRIES):
            pair_tables[p, pair, T.ramp(0, 1, ENTRIES)] = _pair_table(pair, p)


@script.macro
def fill_tables(tables: Any, row: Any, pair_tables: Any, codes: Any, bits: int) -> None:
    """Fill row ``row`` of [row, nibble, entry] from a word of each plane, ``codes``, an even number of them."""
    pairs = T.alloc_buffer((plane_pairs(bits), 2), "int32")
    for p in T.unroll(plane_pairs(bits)):
        for parity in T.unroll(2):
            pairs[p, parity] = pair_nibbles(codes[2 * p], codes[2 * p + 1], parity)
    for j in T.unroll(NIBBLES):
        tables[row, j, T.ramp(0, 1, ENTRIES)] = _subset_sums(pair_tables, pairs, j, bits)


@script.macro
def fill_weight_indices(indices: Any, weight: Any, shuffle: Any, vectors: int, words: int) -> None:
    """Fill [register of columns, word, nibble, byte] from a packed weight [panel, word, 16]."""
    for v, w in T.grid(vectors, words):
        quarters = T.alloc_buffer((QUARTERS, shuffle.quarter), "int32")
        for q in T.unroll(QUARTERS):
            first: T.let = v * shuffle.width + q * shuffle.quarter
            quarters[q, shuffle.word_lanes] = weight[first // PANEL, w, T.ramp(first % PANEL, 1, shuffle.quarter)]
        for j in T.unroll(NIBBLES):
            indices[v, w, j, shuffle.byte_lanes] = shuffle.nibble(quarters, j)


@script.macro
def clear_sums(sums: Any, rows: int, shuffle: Any) -> None:
    """Begin sums [row, 2, half register]: of 16-bit lanes, and of their upper bytes."""
    for r in T.unroll(rows):
        for odd in T.unroll(2):
            sums[r, odd, shuffle.half_lanes] = T.broadcast(T.uint16(0), shuffle.width // 2)


@script.macro
def add_found(sums: Any, row: Any, found: Any, shuffle: Any) -> None:
    """Add the bytes ``found`` to the 16-bit sums of a row."""
    more: T.let = shuffle.halves(found)
    sums[row, 0, shuffle.half_lanes] = sums[row, 0, shuffle.half_lanes] + more
    sums[row, 1, shuffle.half_lanes] = sums[row, 1, shuffle.half_lanes] + shuffle.odd_bytes(more)


@script.macro
def separate_sums(sums: Any, rows: int, shuffle: Any) -> None:
    """Take the upper bytes out of the sums of whole lanes: what remains are even bytes and odd bytes."""
    for r in T.unroll(rows):
        sums[r, 0, shuffle.half_lanes] = shuffle.even_bytes(
            sums[r, 0, shuffle.half_lanes], sums[r, 1, shuffle.half_lanes]
        )
