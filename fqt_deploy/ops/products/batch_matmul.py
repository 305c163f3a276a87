"""``fqt::batch_matmul``: one matrix product a sample."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te

from fqt_deploy.ops.lib.onnx_body import Body, OnnxFunction
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(a: Tensor, b: Tensor) -> Tensor:
    """The products of corresponding matrices.

    Args:
        a: [B, M, K] float32.
        b: [B, K, N] float32.

    Returns:
        [B, M, N] float32.
    """
    return torch.bmm(a, b)


def fake(a: Tensor, b: Tensor) -> Tensor:
    """Shape rule: [B, M, K], [B, K, N] -> [B, M, N]."""
    if a.dim() != 3 or b.dim() != 3 or a.shape[0] != b.shape[0] or a.shape[2] != b.shape[1]:
        raise ValueError(f"operands {tuple(a.shape)} and {tuple(b.shape)} do not match")
    return a.new_empty((a.shape[0], a.shape[1], b.shape[2]))


def compute(a: te.Tensor, b: te.Tensor) -> te.Tensor:
    """Sum of products."""
    k = te.reduce_axis((0, int(a.shape[2])), "k")
    return te.compute(
        (int(a.shape[0]), int(a.shape[1]), int(b.shape[2])),
        lambda s, m, n: te.sum(a[s, m, k] * b[s, k, n], axis=k),
        name="batch_matmul",
    )


def cost(a: Tensor, b: Tensor) -> Cost:
    """Two operations a multiply-accumulate."""
    return Cost(flops=2 * a.numel() * b.shape[2], bytes_moved=tensor_bytes(a, b, fake(a, b)))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Full and odd extents, single elements."""
    r = torch.Generator().manual_seed(0)
    for batch, m, k, n in ((2, 4, 32, 16), (3, 5, 7, 9), (1, 1, 1, 1)):
        yield torch.randn(batch, m, k, generator=r), torch.randn(batch, k, n, generator=r)


def onnx_body(op: Body, a: str, b: str) -> str:
    """The same in ONNX."""
    return op("MatMul", a, b)


batch_matmul = OpSpec(
    "batch_matmul",
    OpKind.PRODUCT,
    reference,
    fake,
    compute,
    cost,
    sample_inputs,
    tolerance=1e-4,
    onnx=OnnxFunction(onnx_body),
).register()
