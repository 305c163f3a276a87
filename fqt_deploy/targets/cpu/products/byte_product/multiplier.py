"""Products of bytes in vector registers: the instruction that each processor has, and codes as bytes for it.

A packed word becomes eight lanes of four codes: lane ``s`` has the bits ``s``, ``8 + s``, ``16 + s`` and ``24 + s`` of
every plane, so that a shift and a mask put a plane's bits where they belong. In which order positions are added does
not matter, as long as both operands have the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.targets.cpu.features import CpuFeatures

STEPS = 8
"""Number of lanes that a packed word becomes: four codes each."""
_BYTES = 0x01010101
_LARGEST_HALF = 32767
_SIGNED_BITS = 7


@dataclass(frozen=True)
class ByteMultiplier:
    """An instruction that multiplies the bytes of two registers and adds neighbouring products.

    Attributes:
        instruction: LLVM's name of it.
        lanes: 32-bit lanes of a register.
        sums_halves: whether it leaves sums of two products in 16 bits, which are added up and widened now and then;
            else it adds four products to a sum in 32 bits itself.
        rows: channels of a tile.
        vectors: upper bound of the registers of columns in a tile, which takes half of the registers or less.
    """

    instruction: str
    lanes: int
    sums_halves: bool
    rows: int
    vectors: int

    @property
    def dtype(self) -> str:
        """The dtype of what sums are held in: int16 or int32."""
        return "int16" if self.sums_halves else "int32"

    @property
    def sum_count(self) -> int:
        """Number of sums in a register."""
        return 2 * self.lanes if self.sums_halves else self.lanes

    @property
    def sums(self) -> Any:
        """Index vector of the sums of a register."""
        return T.ramp(0, 1, self.sum_count)

    def zeros(self) -> Any:
        """A register of sums of nothing."""
        return T.Broadcast(tirx.const(0, self.dtype), self.sum_count)

    def steps(self, bits: int, other_bits: int, most: int) -> int:
        """The number of lanes whose products fit a sum, of codes so wide: at most ``most``; 0 if one does not."""
        if not self.sums_halves:
            return most
        pair = 2 * ((1 << bits) - 1) * ((1 << other_bits) - 1)
        return min(most, _LARGEST_HALF // pair)

    def add(self, total: Any, unsigned: Any, signed: Any) -> Any:
        """The sums ``total`` and the products of four bytes in each lane; bytes of ``signed`` are of seven bits."""
        operands = self._bytes(unsigned), self._bytes(signed)
        name = T.llvm_lookup_intrinsic_id(self.instruction)
        if self.sums_halves:
            return total + T.call_llvm_pure_intrin(name, *operands, dtype=f"int16x{2 * self.lanes}")
        return T.call_llvm_pure_intrin(name, total, *operands, dtype=f"int32x{self.lanes}")

    def widened(self, total: Any) -> Any:
        """The sums in 32 bits, one for each lane: of 16 bits the lower half and the upper half added."""
        if not self.sums_halves:
            return total
        words = T.reinterpret(total, dtype=f"int32x{self.lanes}")
        lower = (words << splat(16, self.lanes)) >> splat(16, self.lanes)
        return lower + (words >> splat(16, self.lanes))

    def _bytes(self, lanes: Any) -> Any:
        return T.reinterpret(lanes, dtype=f"int8x{4 * self.lanes}")


_DOT_512 = ByteMultiplier("llvm.x86.avx512.vpdpbusd.512", lanes=16, sums_halves=False, rows=8, vectors=2)
_DOT_256 = ByteMultiplier("llvm.x86.avx512.vpdpbusd.256", lanes=8, sums_halves=False, rows=4, vectors=2)
_DOT_ARM = ByteMultiplier("llvm.aarch64.neon.udot.v4i32.v16i8", lanes=4, sums_halves=False, rows=4, vectors=4)
_PAIRS_512 = ByteMultiplier("llvm.x86.avx512.pmaddubs.w.512", lanes=16, sums_halves=True, rows=8, vectors=2)
_PAIRS_256 = ByteMultiplier("llvm.x86.avx2.pmadd.ub.sw", lanes=8, sums_halves=True, rows=4, vectors=2)


def byte_multiplier(features: CpuFeatures) -> ByteMultiplier | None:
    """The instruction that multiplies bytes fastest on a processor; None where none pays."""
    if not features.is_x86:
        return _DOT_ARM if features.has_dot_product else None
    if features.vector_bits == 512:
        return _DOT_512 if features.has_vnni else _PAIRS_512
    if features.vector_bits == 256:
        return _DOT_256 if features.has_dot_product else _PAIRS_256
    return None


def operands_fit(bits: int, other_bits: int) -> bool:
    """Whether codes of these widths are bytes, and those of one width signed ones."""
    return max(bits, other_bits) <= _SIGNED_BITS + 1 and min(bits, other_bits) <= _SIGNED_BITS


def in_order(bits: int, code: Any, other: Any) -> tuple[Any, Any]:
    """Two operands, the first of codes of ``bits`` bits: the one that need not fit a signed byte first."""
    return (other, code) if bits <= _SIGNED_BITS else (code, other)


def expanded_codes(planes: list[Any], step: Any, lanes: int) -> Any:
    """The codes of four bits of each word, a byte each: those of every eighth bit from ``step`` on.

    Args:
        planes: int32 vectors of ``lanes`` words, one for each bit-plane, lowest first.
        step: which of the eight groups of bits.
        lanes: how many words.

    Returns:
        int32 vector of ``lanes``, four codes in each.
    """
    total: Any = None
    for plane, words in enumerate(planes):
        bit = ((words >> splat(step, lanes)) & splat(_BYTES, lanes)) << splat(plane, lanes)
        total = bit if total is None else total | bit
    return total


def codes_of_a_row(planes: list[Any]) -> Any:
    """The codes of one word, a byte each, in the order of ``expanded_codes``.

    Args:
        planes: an int32 for each bit-plane, lowest first.

    Returns:
        int32x8, four codes in each.
    """
    total: Any = None
    for plane, word in enumerate(planes):
        bit = ((tirx.Broadcast(word, STEPS) >> T.ramp(0, 1, STEPS)) & splat(_BYTES, STEPS)) << splat(plane, STEPS)
        total = bit if total is None else total | bit
    return total


def expanded_levels(planes: list[Any], step: Any, lanes: int) -> Any:
    """The levels of four bits of each word, twice the codes less the largest, where ``expanded_codes`` has codes."""
    octets = T.reinterpret(expanded_codes(planes, step, lanes), dtype=f"int8x{4 * lanes}")
    largest = tirx.Broadcast(tirx.const((1 << len(planes)) - 1, "int8"), 4 * lanes)
    return T.reinterpret(octets + octets - largest, dtype=f"int32x{lanes}")


def splat(value: Any, lanes: int) -> Any:
    """An int32 vector of equal lanes."""
    return tirx.Broadcast(tirx.const(value, "int32") if isinstance(value, int) else value, lanes)
