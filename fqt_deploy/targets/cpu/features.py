"""What an x86-64 or other CPU level offers, derived from LLVM's name for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CpuFeatures:
    """Instruction-set facts that schedule rules choose by.

    Attributes:
        mcpu: LLVM CPU name, such as ``znver4`` or ``x86-64-v3``.
        vector_bits: width of the widest vector register worth using, in bits.
        has_vpopcnt: per-lane vector popcount (AVX-512 VPOPCNTDQ).
        has_vnni: 8-bit dot product into 32-bit lanes (AVX-512 VNNI).
        has_vbmi: byte permutation across a register (AVX-512 VBMI).
        is_x86: whether x86 intrinsics may be used at all.
    """

    mcpu: str
    vector_bits: int
    has_vpopcnt: bool
    has_vnni: bool
    has_vbmi: bool
    is_x86: bool
