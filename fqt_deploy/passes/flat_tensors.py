"""Views of tensors as [rows, elements], as the optimizer takes parameters and gradients."""

from __future__ import annotations

import math

import torch
from torch import fx

from fqt_deploy.core.graph import Emitter, shape

aten = torch.ops.aten


def as_rows(emit: Emitter, node: fx.Node) -> fx.Node:
    """The value as [rows, elements] where it has more axes."""
    extents = shape(node)
    return viewed(emit, node, [extents[0], math.prod(extents[1:])] if len(extents) > 2 else extents)


def viewed(emit: Emitter, node: fx.Node, size: list[int]) -> fx.Node:
    """The value in the shape ``size``, which may be its own."""
    return node if shape(node) == size else emit.behind(node)(aten.view.default, node, size)
