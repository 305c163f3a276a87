"""``fqt::scatter_rows``: rows of the kept groups back in their places, the others zero."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(x: Tensor, slot: Tensor) -> Tensor:
    """Row ``slot[g]`` of ``x``, or zeros where that is -1.

    Args:
        x: [K, ...] float32.
        slot: [G] int32.

    Returns:
        [G, ...] float32.
    """
    present = (slot >= 0).view(-1, *[1] * (x.ndim - 1))
    return torch.where(present, x[slot.clamp(min=0).long()], 0.0)


def fake(x: Tensor, slot: Tensor) -> Tensor:
    """Shape rule: [K, ...], [G] -> [G, ...]."""
    return x.new_empty((slot.shape[0], *x.shape[1:]))


def compute(x: te.Tensor, slot: te.Tensor) -> te.Tensor:
    """Indirect reads; rows of pruned groups are never read."""
    return te.compute(
        (slot.shape[0], *x.shape[1:]),
        lambda g, *i: tirx.if_then_else(slot[g] >= 0, x[(slot[g], *i)], tirx.const(0.0, "float32")),
        name="scatter_rows",
    )


def cost(x: Tensor, slot: Tensor) -> Cost:
    """Memory traffic only."""
    return Cost(bytes_moved=tensor_bytes(x) + tensor_bytes(x) * slot.shape[0] // x.shape[0])


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """An image, a matrix."""
    g = torch.Generator().manual_seed(0)
    slot = torch.tensor([-1, 0, 1, -1, 2], dtype=torch.int32)
    yield torch.randn(3, 4, 5, generator=g), slot
    yield torch.randn(3, 16, generator=g), slot


scatter_rows = OpSpec("scatter_rows", OpKind.ELEMENTWISE, reference, fake, compute, cost, sample_inputs).register()
