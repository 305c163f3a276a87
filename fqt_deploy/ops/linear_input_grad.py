"""``fqt::linear_input_grad``: gradient of a linear layer's input in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te

from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(g: Tensor, w: Tensor) -> Tensor:
    """``g @ w``.

    Args:
        g: [R, O] float32.
        w: [O, I] float32.

    Returns:
        [R, I] float32.
    """
    return g @ w


def fake(g: Tensor, w: Tensor) -> Tensor:
    """Shape rule of ``reference``."""
    if g.shape[1] != w.shape[0]:
        raise ValueError(f"{tuple(g.shape)} and {tuple(w.shape)} do not contract")
    return g.new_empty((g.shape[0], w.shape[1]))


def compute(g: te.Tensor, w: te.Tensor) -> te.Tensor:
    """One sum an element."""
    k = te.reduce_axis((0, int(g.shape[1])), "k")
    return te.compute(
        (g.shape[0], w.shape[1]), lambda r, i: te.sum(g[r, k] * w[k, i], axis=k), name="linear_input_grad"
    )


def cost(g: Tensor, w: Tensor) -> Cost:
    """Two operations a multiply-accumulate."""
    y = fake(g, w)
    return Cost(flops=2 * y.numel() * g.shape[1], bytes_moved=tensor_bytes(g, w, y))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Whole and odd extents, a single row."""
    generator = torch.Generator().manual_seed(0)
    for rows, inputs, outputs in ((32, 64, 48), (7, 33, 10), (1, 5, 1)):
        yield torch.randn(rows, outputs, generator=generator), torch.randn(outputs, inputs, generator=generator)


linear_input_grad = OpSpec(
    "linear_input_grad", OpKind.PRODUCT, reference, fake, compute, cost, sample_inputs, tolerance=1e-4
).register()
