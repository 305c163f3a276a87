"""``fqt::linear_weight_grad``: gradient of a linear layer's weight in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te

from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(x: Tensor, g: Tensor) -> Tensor:
    """``g.T @ x``.

    Args:
        x: [R, I] float32.
        g: [R, O] float32.

    Returns:
        [O, I] float32.
    """
    return g.t() @ x


def fake(x: Tensor, g: Tensor) -> Tensor:
    """Shape rule of ``reference``."""
    if x.shape[0] != g.shape[0]:
        raise ValueError(f"{tuple(x.shape)} and {tuple(g.shape)} do not contract")
    return x.new_empty((g.shape[1], x.shape[1]))


def compute(x: te.Tensor, g: te.Tensor) -> te.Tensor:
    """One sum an element."""
    k = te.reduce_axis((0, int(x.shape[0])), "k")
    return te.compute(
        (g.shape[1], x.shape[1]), lambda o, i: te.sum(g[k, o] * x[k, i], axis=k), name="linear_weight_grad"
    )


def cost(x: Tensor, g: Tensor) -> Cost:
    """Two operations a multiply-accumulate."""
    y = fake(x, g)
    return Cost(flops=2 * y.numel() * x.shape[0], bytes_moved=tensor_bytes(x, g, y))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Whole and odd extents, a single row."""
    generator = torch.Generator().manual_seed(0)
    for rows, inputs, outputs in ((32, 64, 48), (7, 33, 10), (1, 5, 1)):
        yield torch.randn(rows, inputs, generator=generator), torch.randn(rows, outputs, generator=generator)


linear_weight_grad = OpSpec(
    "linear_weight_grad", OpKind.PRODUCT, reference, fake, compute, cost, sample_inputs, tolerance=1e-4
).register()
