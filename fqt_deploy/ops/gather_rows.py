"""``fqt::gather_rows``: rows of the kept groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te

from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(x: Tensor, index: Tensor) -> Tensor:
    """``x[index]``.

    Args:
        x: [G, ...] of any type.
        index: [K] int32.

    Returns:
        [K, ...].
    """
    return x[index.long()]


def fake(x: Tensor, index: Tensor) -> Tensor:
    """Shape rule: [G, ...], [K] -> [K, ...]."""
    return x.new_empty((index.shape[0], *x.shape[1:]))


def compute(x: te.Tensor, index: te.Tensor) -> te.Tensor:
    """Indirect reads."""
    return te.compute((index.shape[0], *x.shape[1:]), lambda k, *i: x[(index[k], *i)], name="gather_rows")


def cost(x: Tensor, index: Tensor) -> Cost:
    """Memory traffic only."""
    return Cost(bytes_moved=2 * tensor_bytes(x) * index.shape[0] // x.shape[0])


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Floats, bits, booleans, a vector."""
    g = torch.Generator().manual_seed(0)
    index = torch.tensor([0, 3, 4], dtype=torch.int32)
    yield torch.randn(6, 4, 5, generator=g), index
    yield torch.randint(-9, 9, (5, 7), generator=g, dtype=torch.int32), index
    yield torch.randn(5, 3, generator=g) > 0, index
    yield torch.randn(5, generator=g), index


gather_rows = OpSpec("gather_rows", OpKind.ELEMENTWISE, reference, fake, compute, cost, sample_inputs).register()
