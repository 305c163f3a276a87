"""``fqt::linear``: product with a transposed weight."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te

from fqt_deploy.ops.lib.onnx_body import Body, OnnxFunction
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(x: Tensor, w: Tensor) -> Tensor:
    """``x`` times the transpose of ``w``.

    Args:
        x: [R, I] float32.
        w: [O, I] float32.

    Returns:
        [R, O] float32.
    """
    return x @ w.t()


def fake(x: Tensor, w: Tensor) -> Tensor:
    """Shape rule: [R, I], [O, I] -> [R, O]."""
    if x.dim() != 2 or w.dim() != 2 or x.shape[1] != w.shape[1]:
        raise ValueError(f"operands {tuple(x.shape)} and {tuple(w.shape)} do not match")
    return x.new_empty((x.shape[0], w.shape[0]))


def compute(x: te.Tensor, w: te.Tensor) -> te.Tensor:
    """Sum of products."""
    k = te.reduce_axis((0, int(x.shape[1])), "k")
    return te.compute(
        (int(x.shape[0]), int(w.shape[0])),
        lambda r, o: te.sum(x[r, k] * w[o, k], axis=k),
        name="linear",
    )


def cost(x: Tensor, w: Tensor) -> Cost:
    """Two operations a multiply-accumulate."""
    return Cost(flops=2 * x.numel() * w.shape[0], bytes_moved=tensor_bytes(x, w, fake(x, w)))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Full and odd extents, one row, one output."""
    r = torch.Generator().manual_seed(0)
    for rows, i, o in ((8, 32, 16), (5, 33, 10), (1, 7, 3), (4, 64, 1)):
        yield torch.randn(rows, i, generator=r), torch.randn(o, i, generator=r)


def onnx_body(op: Body, x: str, w: str) -> str:
    """A matrix product."""
    return op("Gemm", x, w, transB=1)


linear = OpSpec(
    "linear",
    OpKind.PRODUCT,
    reference,
    fake,
    compute,
    cost,
    sample_inputs,
    tolerance=1e-4,
    onnx=OnnxFunction(onnx_body),
).register()
