"""Products of codes and bits by table: a byte permutation looks up sums of four codes, a dot product adds them up.

Four codes have sixteen subset sums, and four bits of the other operand say which one is meant. A 64-byte register holds
the tables of four such groups, so that one ``vpermb`` looks up sixteen codes for sixteen rows of bits, and one
``vpdpbusd`` adds the four bytes of each row to a 32-bit lane. Codes of up to 4 bits: larger subset sums would not fit a
byte.

Everything here is on vectors of one 512-bit register, spelled as sixteen int32 lanes or as 64 bytes.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.digits import DIGIT_BITS

MINIMUM_BITS = 3
"""Least number of bit-planes: fewer are multiplied faster than tables are looked up."""
MINIMUM_USES = 16
"""Least number of uses of a table, which costs about as much to build as ten lookups save."""
HALVES = 2
"""Number of registers that the table of one word takes: each covers sixteen codes."""
WORDS = 2
"""Number of words whose lookups are added as bytes: four times four codes of 15 are 240."""
LOOKUPS = WORDS * HALVES
_BYTES = 0x01010101


def can_look_up(features: CpuFeatures, bits: int, uses: int) -> bool:
    """Whether tables of ``bits``-bit codes, each used for ``uses`` panels of sixteen rows, pay on this processor."""
    return has_instructions(features) and MINIMUM_BITS <= bits <= DIGIT_BITS and uses >= MINIMUM_USES


def has_instructions(features: CpuFeatures) -> bool:
    """Whether the processor has what a lookup takes."""
    return features.has_vbmi and features.has_vnni and features.has_bitalg


def _lanes() -> Any:
    return tirx.Ramp(tirx.const(0, "int32"), tirx.const(1, "int32"), 16)


def _splat(value: Any) -> Any:
    return tirx.Broadcast(tirx.const(value, "int32") if isinstance(value, int) else value, 16)


def _as_bytes(lanes: Any) -> Any:
    return T.reinterpret(lanes, dtype="int8x64")


def _call(name: str, dtype: str, *operands: Any) -> Any:
    return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(f"llvm.x86.avx512.{name}"), *operands, dtype=dtype)


def permuted(table: Any, indices: Any) -> Any:
    """The bytes of ``table`` that the low six bits of the bytes ``indices`` name, both int8x64."""
    return _call("permvar.qi.512", "int8x64", table, indices)


def shifted_bytes(offsets: Any, words: Any) -> Any:
    """Each byte is the eight bits of its 64-bit word from the bit on that ``offsets`` says, all int8x64."""
    return _call("pmultishift.qb.512", "int8x64", offsets, words)


def subset_sums(words: list[Any], half: Any) -> Any:
    """The table of sixteen codes: byte ``16 g + m`` is the sum of the codes of group ``g`` in subset ``m``.

    Args:
        words: int32 expressions, one for each bit-plane, lowest first.
        half: which sixteen bits of the words, 0 or 1.

    Returns:
        int8x64.
    """
    offsets = _as_bytes(((_lanes() >> _splat(2)) * _splat(4 * _BYTES)) + _splat(16 * _BYTES * half))
    subsets = _as_bytes(((_lanes() & _splat(3)) * _splat(4 * _BYTES)) + _splat(0x03020100))
    total: Any = None
    for word in reversed(words):
        spread = shifted_bytes(offsets, _as_bytes(tirx.Broadcast(word, 16)))
        count = tirx.popcount(spread & subsets)
        total = count if total is None else total + total + count
    return total


def subset_indices(lanes: Any, half: Any) -> Any:
    """Positions in a table that sixteen rows of bits name: byte ``4 l + g`` is ``16 g`` plus four bits of row ``l``.

    Args:
        lanes: int32x16, a word of each row.
        half: which sixteen bits of the words, 0 or 1.

    Returns:
        int8x64.
    """
    offsets = _as_bytes((_lanes() & _splat(1)) * _splat(32 * _BYTES) + _splat(16 * _BYTES * half + 0x0C080400))
    spread = shifted_bytes(offsets, _as_bytes(lanes))
    four_bits = T.reinterpret(spread, dtype="int32x16") & _splat(0x0F0F0F0F)
    return _as_bytes(four_bits | _splat(0x30201000))


def add_lookups(total: Any, tables: list[Any], indices: list[Any]) -> Any:
    """The sum of ``total``, int32x16, and what up to ``LOOKUPS`` rows look up in tables; their sums fit a byte."""
    ones = tirx.Broadcast(tirx.const(1, "int8"), 64)
    found = [permuted(table, index) for table, index in zip(tables, indices, strict=True)]
    return _call("vpdpbusd.512", "int32x16", total, functools.reduce(operator.add, found), ones)


@script.macro
def add_products(total: Any, rows: int, panels: int, words: int, word: Any, table: Any) -> None:
    """Add the products of ``words`` words, ``WORDS`` at most, to a tile.

    Args:
        total: int32 [rows, panels, 16].
        rows: rows of codes.
        panels: panels of sixteen rows of bits.
        words: number of words of each.
        word: the word by panel and number among ``words``: int32x16.
        table: the table by row, number among ``words``, and half: int8x64.
    """
    indices = T.alloc_buffer((panels, words * HALVES, 64), "int8")
    for p in T.unroll(panels):
        for u in T.unroll(words):
            for half in T.unroll(HALVES):
                indices[p, u * HALVES + half, T.ramp(0, 1, 64)] = subset_indices(word(p, u), half)
    for r in T.unroll(rows):
        for p in T.unroll(panels):
            total[r, p, T.ramp(0, 1, 16)] = add_lookups(
                total[r, p, T.ramp(0, 1, 16)],
                [table(r, j // HALVES, j % HALVES) for j in range(words * HALVES)],
                [indices[p, j, T.ramp(0, 1, 64)] for j in range(words * HALVES)],
            )
