"""``fqt::linear_input_grad``: gradient of ``linear`` with respect to its input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te

from fqt_deploy.ops.lib.onnx_body import Body, OnnxFunction
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(g: Tensor, w: Tensor) -> Tensor:
    """``g`` times ``w``.

    Args:
        g: [R, O] float32.
        w: [O, I] float32.

    Returns:
        [R, I] float32.
    """
    return g @ w


def fake(g: Tensor, w: Tensor) -> Tensor:
    """Shape rule: [R, O], [O, I] -> [R, I]."""
    if g.dim() != 2 or w.dim() != 2 or g.shape[1] != w.shape[0]:
        raise ValueError(f"operands {tuple(g.shape)} and {tuple(w.shape)} do not match")
    return g.new_empty((g.shape[0], w.shape[1]))


def compute(g: te.Tensor, w: te.Tensor) -> te.Tensor:
    """Sum of products."""
    k = te.reduce_axis((0, int(g.shape[1])), "k")
    return te.compute(
        (int(g.shape[0]), int(w.shape[1])),
        lambda r, i: te.sum(g[r, k] * w[k, i], axis=k),
        name="linear_input_grad",
    )


def cost(g: Tensor, w: Tensor) -> Cost:
    """Two operations a multiply-accumulate."""
    return Cost(flops=2 * g.numel() * w.shape[1], bytes_moved=tensor_bytes(g, w, fake(g, w)))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Full and odd extents, one row, one output."""
    r = torch.Generator().manual_seed(0)
    for rows, i, o in ((8, 32, 16), (5, 33, 10), (1, 7, 3), (4, 64, 1)):
        yield torch.randn(rows, o, generator=r), torch.randn(o, i, generator=r)


def onnx_body(op: Body, g: str, w: str) -> str:
    """A matrix product."""
    return op("MatMul", g, w)


linear_input_grad = OpSpec(
    "linear_input_grad",
    OpKind.PRODUCT,
    reference,
    fake,
    compute,
    cost,
    sample_inputs,
    tolerance=1e-4,
    onnx=OnnxFunction(onnx_body),
).register()
