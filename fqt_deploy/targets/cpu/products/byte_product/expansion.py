"""Codes as bytes: four neighbouring bits of every plane's word become four codes in a 32-bit lane.

``vpmultishiftqb`` gives each byte of a lane the eight bits from any bit of its 64-bit word on. Taken from ``p`` bits
before the one that is wanted, it is bit ``p`` of the byte: where plane ``p`` belongs. The planes' bytes are masked and
joined, three of them by one ``vpternlogd``.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.targets.cpu.features import CpuFeatures

STEPS = 8
"""Number of lanes that a packed word becomes: four codes each."""
_BYTES = 0x01010101
_SIXTY_FOUR = 64


def has_byte_products(features: CpuFeatures) -> bool:
    """Whether the processor multiplies and adds bytes in its vector registers, and spreads bits over them."""
    return features.is_x86 and features.has_vnni and features.has_vbmi


def expanded_codes(planes: list[Any], step: Any, lanes: int) -> Any:
    """The codes of bits ``4 step`` to ``4 step + 3``, a byte each.

    Args:
        planes: int32 vectors of ``lanes`` words, one for each bit-plane, lowest first.
        step: which of the eight groups of bits.
        lanes: 8 or 16.

    Returns:
        int32 vector of ``lanes``, four codes in each.
    """
    number = tirx.Ramp(tirx.const(0, "int32"), tirx.const(1, "int32"), lanes)
    total: Any = None
    for plane, words in enumerate(planes):
        first = step * (4 * _BYTES) + (0x03020100 + _BYTES * (_SIXTY_FOUR - plane))  # offsets count modulo 64
        offsets = (number & _splat(1, lanes)) * _splat(32 * _BYTES, lanes) + _splat(first, lanes)
        spread = _multishift(_as_bytes(offsets, lanes), _as_bytes(words, lanes), lanes)
        bit = T.reinterpret(spread, dtype=f"int32x{lanes}") & _splat(_signed(_BYTES << plane), lanes)
        total = bit if total is None else total | bit
    return total


def add_byte_products(total: Any, unsigned: Any, signed: Any) -> Any:
    """The sum of ``total``, int32x16, and the products of four bytes in each lane of two int32x16."""
    name = T.llvm_lookup_intrinsic_id("llvm.x86.avx512.vpdpbusd.512")
    operands = total, _as_bytes(unsigned, 16), _as_bytes(signed, 16)
    return T.call_llvm_pure_intrin(name, *operands, dtype="int32x16")


def _multishift(offsets: Any, words: Any, lanes: int) -> Any:
    name = T.llvm_lookup_intrinsic_id(f"llvm.x86.avx512.pmultishift.qb.{32 * lanes}")
    return T.call_llvm_pure_intrin(name, offsets, words, dtype=f"int8x{4 * lanes}")


def _as_bytes(vector: Any, lanes: int) -> Any:
    return T.reinterpret(vector, dtype=f"int8x{4 * lanes}")


def _splat(value: Any, lanes: int) -> Any:
    return tirx.Broadcast(tirx.const(value, "int32") if isinstance(value, int) else value, lanes)


def _signed(value: int) -> int:
    """The int32 with the bits of an unsigned 32-bit number."""
    return value - (1 << 32) if value >> 31 else value
