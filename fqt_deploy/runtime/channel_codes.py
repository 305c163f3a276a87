"""Gradients as 4-bit codes with one scale for each channel, rounded at random and without bias.

A channel of n elements is ``float32 scale`` and ``ceil(n / 2)`` bytes; a code c stands for ``(c - 7) * scale``, so that
zeros stay zeros, and the largest element of a channel is kept as it is. ``codegen/channel_codes.c`` computes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fqt_deploy.runtime.group import mixed_seed

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclass
class Draws:
    """Keys of the counter-based generator that the compiled step uses, ``ops/lib/counter_random.py``.

    Attributes:
        seed: the seed of this step in this process.
        count: number of keys that were taken.
    """

    seed: int
    count: int = 0

    def key(self) -> int:
        """The next key, an unsigned 64-bit integer."""
        key = mixed_seed(self.seed, self.count)
        self.count += 1
        return key


@dataclass(frozen=True)
class ChannelCodes:
    """The functions of a library that write and read codes.

    Attributes:
        encode_at: ``codes_encode`` of ``channel_codes.c``.
        decode_at: ``codes_decode``.
    """

    encode_at: Callable[..., None]
    decode_at: Callable[..., None]

    def encode(self, values: Floats, key: int, codes: Bytes) -> None:
        """Write the codes of ``values``; byte i is rounded by both halves of the generator's number i.

        Args:
            values: [channels, elements] float32, C-contiguous.
            key: says how to round.
            codes: [channels * encoded_bytes(elements)] uint8.
        """
        channels, elements = values.shape
        _check(values, codes)
        signed = key - 2**64 if key >= 2**63 else key
        self.encode_at(values.ctypes.data, channels, elements, signed, codes.ctypes.data)

    def decode(self, codes: Bytes, out: Floats, *, add: bool) -> None:
        """Read codes of ``encode``.

        Args:
            codes: [channels * encoded_bytes(elements)] uint8.
            out: [channels, elements] float32, C-contiguous.
            add: add the numbers to ``out`` rather than overwrite it.
        """
        channels, elements = out.shape
        _check(out, codes)
        self.decode_at(codes.ctypes.data, channels, elements, out.ctypes.data, int(add))


def encoded_bytes(elements: int) -> int:
    """Size of the codes of a channel of so many elements, with its scale."""
    return 4 + (elements + 1) // 2


def _check(values: NDArray[Any], codes: NDArray[Any]) -> None:
    """ValueError unless the arrays are what compiled code, which gets their addresses, takes them for."""
    channels, elements = values.shape
    fits = codes.shape == (channels * encoded_bytes(elements),)
    types = codes.dtype == np.uint8 and values.dtype == np.float32
    if not (fits and types and values.flags.c_contiguous and codes.flags.c_contiguous):
        raise ValueError(f"{codes.dtype}{codes.shape} are no codes of {values.dtype}{values.shape}")
