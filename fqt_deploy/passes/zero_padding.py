"""Zeros that are padded in front of a convolution by an operator of their own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from fqt_deploy.core.call import call_of, source_of
from fqt_deploy.core.graph import Emitter, shape

aten = torch.ops.aten

_CHANNELS_LAST = [0, 2, 3, 1]


@dataclass(frozen=True)
class ZeroPadding:
    """What lies before a convolution's operand.

    Attributes:
        node: that pads.
        extents: rows of zeros above and below, columns on the left and on the right.
        channels_first: whether it pads [N, C, H, W], which is permuted behind it.
    """

    node: fx.Node
    extents: tuple[tuple[int, int], tuple[int, int]]
    channels_first: bool

    @property
    def image(self) -> list[int]:
        """Height and width without the zeros."""
        extents = shape(source_of(self.node))
        return extents[2:] if self.channels_first else extents[1:3]

    def emit_source(self, emit: Emitter) -> fx.Node:
        """The operand [N, H, W, C] without the zeros."""
        source = source_of(self.node)
        return emit(aten.permute.default, source, _CHANNELS_LAST) if self.channels_first else source


def padding_before(product: fx.Node) -> ZeroPadding | None:
    """The zeros in front of the first operand of a convolution, forward or of its weight; None if there are none."""
    operand = source_of(product)
    if len(shape(operand)) != 4:
        return None
    channels_first = operand.target is aten.permute.default and list(call_of(operand).dims) == _CHANNELS_LAST
    node = source_of(operand) if channels_first else operand
    if node.target is not aten.constant_pad_nd.default or call_of(node).value != 0:
        return None
    pad = [*call_of(node).pad, *[0] * 8][:8]
    if not channels_first and any(pad[:2]):
        return None
    width, height, *others = [tuple(pad[i : i + 2]) for i in range(0 if channels_first else 2, 8, 2)]
    if any(extent < 0 for extent in (*width, *height)) or any(map(any, others)):
        return None
    return ZeroPadding(node, (height, width), channels_first)
