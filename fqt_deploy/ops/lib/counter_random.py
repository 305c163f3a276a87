"""The counter-based generator: one uint32 per (stream key, element index), equal in PyTorch and on every target."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te, tirx

MULTIPLIERS = (0x21F0AAAD, 0x735A2D97)
_MASK = 0xFFFFFFFF


def element_hash(index: Tensor, key: Tensor) -> Tensor:
    """Two rounds of multiply and xor-shift (Wellons, hash prospector), each with half of the key.

    Args:
        index: [...] int64 in [0, 2^32).
        key: [2] int32.

    Returns:
        [...] int64 in [0, 2^32), uniform.
    """
    x = index
    for word, multiplier in zip((key[0], key[1]), MULTIPLIERS, strict=True):
        x = multiply_uint32((x ^ (word.long() & _MASK)) & _MASK, multiplier)
        x = x ^ (x >> 15)
    return x


def drop_threshold(probability: float) -> int:
    """The number below which the upper 24 bits of a random number drop an element."""
    return round(probability * 2**24)


def multiply_uint32(x: Tensor, multiplier: int) -> Tensor:
    """The product ``x * multiplier mod 2^32`` for int64 ``x`` in [0, 2^32), without overflowing int64."""
    low, high = multiplier & 0xFFFF, multiplier >> 16
    return (x * low + (((x * high) & 0xFFFF) << 16)) & _MASK


def element_hash_compute(index: Any, key: te.Tensor) -> Any:
    """The random number ``element_hash`` of the uint32 expression ``index``."""
    x = index
    for i, multiplier in enumerate(MULTIPLIERS):
        x = (x ^ tirx.reinterpret("uint32", key[i])) * uint32(multiplier)
        x = x ^ (x >> uint32(15))
    return x


def uint32(value: int) -> Any:
    """The TIR constant of type uint32."""
    return tirx.const(value, "uint32")


def flat_index(index: tuple[Any, ...], shape: tuple[int, ...]) -> Any:
    """Row-major position of ``index`` as a uint32 expression."""
    flat: Any = uint32(0)
    for i, extent in zip(index, shape, strict=True):
        flat = flat * uint32(extent) + i.astype("uint32")
    return flat
