"""Codes as digits of at most four bits: sums of four such codes fit a byte, where four are added, too."""

from __future__ import annotations

DIGIT_BITS = 4
"""Width of the widest digit in bits."""


def digits_of(bits: int) -> int:
    """Number of digits of codes, which are as wide as each other where ``bits`` is a multiple of it."""
    return -(-bits // DIGIT_BITS)
