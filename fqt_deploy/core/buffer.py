"""The arrays that kernels write: where each value of a lowered graph lies."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import fx

from fqt_deploy.core.call import call_of
from fqt_deploy.core.graph import behind_views


@dataclass(frozen=True)
class Buffer:
    """One result of a kernel.

    Attributes:
        root: the kernel's root, or an input of the function.
        index: number of the result, where the kernel has several.
    """

    root: fx.Node
    index: int = 0

    @property
    def value(self) -> torch.Tensor:
        """The meta tensor with the result's shape and dtype."""
        values = self.root.meta["val"]
        found: torch.Tensor = values[self.index] if isinstance(values, (tuple, list)) else values
        return found


def buffer_of(node: fx.Node) -> Buffer:
    """The buffer that ``node``, perhaps a view or one of several results, lies in."""
    node = behind_views(node)
    if node.target is operator.getitem:
        item = call_of(node)
        return Buffer(item.source, item.index)
    return Buffer(node)


def buffers_of(root: fx.Node) -> list[Buffer]:
    """All results of the kernel rooted in ``root``."""
    values = root.meta["val"]
    return [Buffer(root, i) for i in range(len(values) if isinstance(values, (tuple, list)) else 1)]
