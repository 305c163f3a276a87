"""The digests by which clocks note kernels."""

from __future__ import annotations


def symbol_digest(symbol: str) -> int:
    """What the compiled clock notes of ``symbol``: FNV-1a in 64 bits, as a signed integer."""
    found = 14695981039346656037
    for byte in symbol.encode():
        found = (found ^ byte) * 1099511628211 % 2**64
    return found - 2**64 if found >= 2**63 else found
