"""``fqt::batch_matmul``: batched matrix product in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te

from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b``.

    Args:
        a: [B, M, K] float32.
        b: [B, K, N] float32.

    Returns:
        [B, M, N] float32.
    """
    return a @ b


def fake(a: Tensor, b: Tensor) -> Tensor:
    """Shape rule of ``reference``."""
    if a.shape[2] != b.shape[1]:
        raise ValueError(f"{tuple(a.shape)} and {tuple(b.shape)} do not contract")
    return a.new_empty((a.shape[0], a.shape[1], b.shape[2]))


def compute(a: te.Tensor, b: te.Tensor) -> te.Tensor:
    """One sum an element."""
    k = te.reduce_axis((0, int(a.shape[2])), "k")
    return te.compute(
        (a.shape[0], a.shape[1], b.shape[2]),
        lambda n, i, j: te.sum(a[n, i, k] * b[n, k, j], axis=k),
        name="batch_matmul",
    )


def cost(a: Tensor, b: Tensor) -> Cost:
    """Two operations a multiply-accumulate."""
    y = fake(a, b)
    return Cost(flops=2 * y.numel() * a.shape[2], bytes_moved=tensor_bytes(a, b, y))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Whole and odd extents, a single row."""
    g = torch.Generator().manual_seed(0)
    for m, k, n in ((32, 64, 48), (7, 33, 10), (1, 5, 1)):
        yield torch.randn(3, m, k, generator=g), torch.randn(3, k, n, generator=g)


batch_matmul = OpSpec(
    "batch_matmul", OpKind.PRODUCT, reference, fake, compute, cost, sample_inputs, tolerance=1e-4
).register()
