"""``fqt::linear_weight_grad``: gradient of ``linear`` with respect to its weight."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te

from fqt_deploy.ops.lib.onnx_body import Body, OnnxFunction
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(x: Tensor, g: Tensor) -> Tensor:
    """The transpose of ``g`` times ``x``.

    Args:
        x: [R, I] float32.
        g: [R, O] float32.

    Returns:
        [O, I] float32.
    """
    return (g.t() @ x).contiguous()


def fake(x: Tensor, g: Tensor) -> Tensor:
    """Shape rule: [R, I], [R, O] -> [O, I]."""
    if x.dim() != 2 or g.dim() != 2 or x.shape[0] != g.shape[0]:
        raise ValueError(f"operands {tuple(x.shape)} and {tuple(g.shape)} do not match")
    return x.new_empty((g.shape[1], x.shape[1]))


def compute(x: te.Tensor, g: te.Tensor) -> te.Tensor:
    """Sum of products."""
    k = te.reduce_axis((0, int(x.shape[0])), "k")
    return te.compute(
        (int(g.shape[1]), int(x.shape[1])),
        lambda o, i: te.sum(x[k, i] * g[k, o], axis=k),
        name="linear_weight_grad",
    )


def cost(x: Tensor, g: Tensor) -> Cost:
    """Two operations a multiply-accumulate."""
    return Cost(flops=2 * x.numel() * g.shape[1], bytes_moved=tensor_bytes(x, g, fake(x, g)))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Full and odd extents, one row, one output."""
    r = torch.Generator().manual_seed(0)
    for rows, i, o in ((8, 32, 16), (5, 33, 10), (1, 7, 3), (4, 64, 1)):
        yield torch.randn(rows, i, generator=r), torch.randn(rows, o, generator=r)


def onnx_body(op: Body, x: str, g: str) -> str:
    """A matrix product."""
    return op("Gemm", g, x, transA=1)


linear_weight_grad = OpSpec(
    "linear_weight_grad",
    OpKind.PRODUCT,
    reference,
    fake,
    compute,
    cost,
    sample_inputs,
    tolerance=1e-4,
    onnx=OnnxFunction(onnx_body),
).register()
