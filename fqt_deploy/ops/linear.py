"""``fqt::linear``: product of rows with a weight in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te

from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(x: Tensor, w: Tensor) -> Tensor:
    """``x @ w.T``.

    Args:
        x: [R, I] float32.
        w: [O, I] float32.

    Returns:
        [R, O] float32.
    """
    return x @ w.t()


def fake(x: Tensor, w: Tensor) -> Tensor:
    """Shape rule of ``reference``."""
    if x.shape[1] != w.shape[1]:
        raise ValueError(f"{tuple(x.shape)} and {tuple(w.shape)} do not contract")
    return x.new_empty((x.shape[0], w.shape[0]))


def compute(x: te.Tensor, w: te.Tensor) -> te.Tensor:
    """One sum an element."""
    k = te.reduce_axis((0, int(x.shape[1])), "k")
    return te.compute((x.shape[0], w.shape[0]), lambda r, o: te.sum(x[r, k] * w[o, k], axis=k), name="linear")


def cost(x: Tensor, w: Tensor) -> Cost:
    """Two operations a multiply-accumulate."""
    y = fake(x, w)
    return Cost(flops=2 * y.numel() * x.shape[1], bytes_moved=tensor_bytes(x, w, y))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Whole and odd extents, a single row."""
    g = torch.Generator().manual_seed(0)
    for rows, inputs, outputs in ((32, 64, 48), (7, 33, 10), (1, 5, 1)):
        yield torch.randn(rows, inputs, generator=g), torch.randn(outputs, inputs, generator=g)


linear = OpSpec("linear", OpKind.PRODUCT, reference, fake, compute, cost, sample_inputs, tolerance=1e-4).register()
