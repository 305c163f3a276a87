"""Gradients as 4-bit codes with one scale for each channel, rounded at random and without bias.

A channel of n elements is ``float32 scale`` and ``ceil(n / 2)`` bytes; a code c stands for ``(c - 7) * scale``, so that
zeros stay zeros, and the largest element of a channel is kept as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fqt_deploy.runtime.group import mixed_seed

LEVELS = 7
"""Number of codes on each side of that of zero."""
_CHUNK = 1 << 15
"""Elements that are encoded at a time: few enough for the caches."""
_MULTIPLIERS = (0x21F0AAAD, 0x735A2D97)
_VALUES = np.arange(-LEVELS, 16 - LEVELS, dtype=np.float32)
_PAIRS = np.stack([np.tile(_VALUES, 16), np.repeat(_VALUES, 16)], axis=1).view(np.uint64).reshape(256)
"""The numbers of both codes in each byte, the lower four bits first: two float32 in each element."""

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclass
class Draws:
    """Random numbers of the counter-based generator that the compiled step uses, ``ops/lib/counter_random.py``.

    Attributes:
        seed: the seed of this step in this process.
        count: number of streams that were begun; with the seed it is the key of the next one.
    """

    seed: int
    count: int = 0
    _index: NDArray[np.uint32] = field(default_factory=lambda: np.arange(_CHUNK // 2 + 1, dtype=np.uint32))

    def uniform(self, count: int) -> Floats:
        """The next ``count`` numbers in [0, 1), at most ``_CHUNK``, each on a grid of 2^-16; [count] float32.

        Two numbers are made of each 32-bit hash.
        """
        key = mixed_seed(self.seed, self.count)
        keys = (np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32))
        self.count += 1
        x = self._index[: (count + 1) // 2].copy()
        for word, multiplier in zip(keys, _MULTIPLIERS, strict=True):
            x ^= word
            x *= np.uint32(multiplier)
            x ^= x >> np.uint32(15)
        return x.view(np.uint16)[:count].astype(np.float32) * np.float32(2**-16)


def encoded_bytes(elements: int) -> int:
    """Size of the codes of a channel of so many elements, with its scale."""
    return 4 + (elements + 1) // 2


def encode(values: Floats, draws: Draws, out: Bytes) -> None:
    """Write the codes of ``values``.

    Args:
        values: [channels, elements] float32.
        draws: says how to round.
        out: [channels * encoded_bytes(elements)] uint8.
    """
    channels, elements = values.shape
    rows = out.reshape(channels, encoded_bytes(elements))
    step = max(1, _CHUNK // max(1, elements))
    for first in range(0, channels, step):
        part = values[first : first + step]
        scale = np.maximum(part.max(axis=1), -part.min(axis=1)) * np.float32(1 / LEVELS)
        rows[first : first + step, :4] = scale.view(np.uint8).reshape(-1, 4)
        with np.errstate(divide="ignore"):
            inverse = np.where(scale > 0, 1 / scale, np.float32(0)).astype(np.float32)
        for begin in range(0, elements, _CHUNK):
            codes = part[:, begin : begin + _CHUNK] * inverse[:, None]
            codes += draws.uniform(codes.size).reshape(codes.shape)
            codes += LEVELS
            with np.errstate(invalid="ignore"):  # NaN has any code: its channel's scale is NaN
                whole = np.minimum(codes, 2 * LEVELS).astype(np.uint8)
            if whole.shape[1] % 2:
                whole = np.pad(whole, ((0, 0), (0, 1)), constant_values=LEVELS)
            place = rows[first : first + step, 4 + begin // 2 : 4 + begin // 2 + whole.shape[1] // 2]
            np.bitwise_or(whole[:, ::2], whole[:, 1::2] << 4, out=place)


def decode(codes: Bytes, out: Floats, *, add: bool) -> None:
    """Read codes of ``encode``.

    Args:
        codes: [channels * encoded_bytes(elements)] uint8.
        out: [channels, elements] float32.
        add: add the numbers to ``out`` rather than overwrite it.
    """
    channels, elements = out.shape
    rows = codes.reshape(channels, encoded_bytes(elements))
    step = max(1, _CHUNK // max(1, elements))
    for first in range(0, channels, step):
        part = rows[first : first + step]
        scale = np.ascontiguousarray(part[:, :4]).view(np.float32)
        for begin in range(0, elements, _CHUNK):
            place = out[first : first + step, begin : begin + _CHUNK]
            packed = part[:, 4 + begin // 2 : 4 + (begin + place.shape[1] + 1) // 2]
            numbers = _PAIRS.take(packed).view(np.float32)[:, : place.shape[1]] * scale
            if add:
                place += numbers
            else:
                place[...] = numbers
