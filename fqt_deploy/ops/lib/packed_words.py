"""Single bits in 32-bit words: bit k of word w is element 32 w + k, 1 stands for +1; bits past the end are 0."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te, tirx

WORD = 32
"""Number of elements in one word."""
PANEL = 16
"""Number of rows that a panel of packed weights or positions interleaves: one 512-bit register of words."""
RUN = "fqt.run"
"""Attribute of the stage whose values are packed: this many neighbours are all elements or all past the end."""
SHORTEST_RUN = 8
"""Least length of a run for which values past the end are computed, as zeros: one vector of float32."""
IN_PLANES = frozenset({"quantize_pack_samples", "pack_levels"})
"""Names of the ops that pack several bits of each element, the words of a plane behind those of another."""


def word_count(elements: int) -> int:
    """Words that hold ``elements`` bits."""
    return -(-int(elements) // WORD)


def panel_count(rows: int) -> int:
    """Panels that hold ``rows`` rows."""
    return -(-int(rows) // PANEL)


def pack_last_axis(bits: Tensor) -> Tensor:
    """The bits of the last axis packed into words: [..., C] bool -> [..., ceil(C / 32)] int32."""
    padding = -bits.shape[-1] % WORD
    padded = torch.nn.functional.pad(bits.to(torch.int64), (0, padding))
    grouped = padded.reshape(*padded.shape[:-1], -1, WORD)
    words: Tensor = (grouped << torch.arange(WORD)).sum(-1).to(torch.int32)
    return words


def unpack_last_axis(words: Tensor, count: int) -> Tensor:
    """The bits of words: [..., words] int32 -> [..., count] int64 of zeros and ones."""
    bits = (words.to(torch.int64).unsqueeze(-1) >> torch.arange(WORD)) & 1
    return bits.flatten(-2)[..., :count]


def to_panels(rows: Tensor) -> Tensor:
    """The rows in panels: [R, words] -> [panels, words, PANEL]; missing rows are 0."""
    padded = torch.nn.functional.pad(rows, (0, 0, 0, -rows.shape[0] % PANEL))
    return padded.reshape(-1, PANEL, padded.shape[1]).transpose(1, 2).contiguous()


def from_panels(panels: Tensor, rows: int) -> Tensor:
    """The rows of panels: [panels, words, PANEL] -> [rows, words]."""
    return panels.transpose(1, 2).flatten(0, 1)[:rows]


def values_to_pack(extents: Sequence[int], value: Callable[..., Any], name: str) -> te.Tensor:
    """The stage of the uint8 values whose bits are packed, with zeros up to whole words where that costs little.

    It costs little where the last axis comes in runs of ``SHORTEST_RUN`` elements or more, because a run is all there
    or all past the end: no vector is in part.

    Args:
        extents: the elements that there are.
        value: indices -> the uint8 expression of an element.
        name: of the stage.
    """
    *leading, channels = extents
    run = math.gcd(channels, WORD)
    filled = word_count(channels) * WORD if run >= SHORTEST_RUN else channels

    def element(*index: Any) -> Any:
        if filled == channels:
            return value(*index)
        return tirx.if_then_else(index[-1] // run < channels // run, value(*index), tirx.const(0, "uint8"))

    return te.compute((*leading, filled), element, name=name, attrs={RUN: run})


def popcount(word: Any) -> Any:
    """Number of ones in an int32 expression, as int32."""
    return tirx.popcount(word)


def packed(shape: tuple[int, ...], bit: Callable[..., Any], name: str) -> te.Tensor:
    """Words of ``shape`` whose bit k is ``bit(*index, k)``, a boolean or 0/1 integer expression."""
    k = te.reduce_axis((0, WORD), name="k")
    return te.compute(
        shape,
        lambda *i: te.sum(bit(*i, k).astype("int32") << k, axis=k),
        name=name,
    )


def bit_of(word: Any, k: Any) -> Any:
    """Bit ``k`` of an int32 expression, 0 or 1."""
    return (word >> k) & 1
