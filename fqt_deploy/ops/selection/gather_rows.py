"""``fqt::gather_rows``: the kept rows of a tensor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te

from fqt_deploy.ops.lib.onnx_body import Body, OnnxFunction
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(x: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` of ``x``.

    Args:
        x: [G, ...] of any type.
        index: [K] int32, each in [0, G).

    Returns:
        [K, ...] of the type of ``x``.
    """
    return x[index.long()].contiguous()


def fake(x: Tensor, index: Tensor) -> Tensor:
    """Shape rule: [G, ...], [K] -> [K, ...]."""
    if x.dim() < 1 or index.dim() != 1:
        raise ValueError(f"cannot gather rows {tuple(index.shape)} of {tuple(x.shape)}")
    return x.new_empty((index.shape[0], *x.shape[1:]))


def compute(x: te.Tensor, index: te.Tensor) -> te.Tensor:
    """One indirect read an element."""
    shape = [int(index.shape[0]), *(int(d) for d in x.shape[1:])]
    return te.compute(shape, lambda k, *rest: x[(index[k], *rest)], name="gather_rows")


def cost(x: Tensor, index: Tensor) -> Cost:
    """Reads the kept rows only."""
    return Cost(bytes_moved=tensor_bytes(index) + 2 * tensor_bytes(fake(x, index)))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Every type in use, any rank, repeated and single rows."""
    g = torch.Generator().manual_seed(0)
    some = torch.tensor([0, 2, 3, 6], dtype=torch.int32)
    yield torch.randn(7, 4, 16, generator=g), some
    yield torch.randn(7, generator=g), some
    yield torch.randint(-9, 9, (7, 3), generator=g, dtype=torch.int32), torch.tensor([5], dtype=torch.int32)
    yield torch.rand(7, 5, generator=g) > 0.5, some
    yield torch.randint(-9, 9, (7, 2, 2, 3), generator=g), torch.tensor([6, 6, 0], dtype=torch.int32)


def onnx_body(op: Body, x: str, index: str) -> str:
    """A gather."""
    return op("Gather", x, index, axis=0)


gather_rows = OpSpec(
    "gather_rows", OpKind.ELEMENTWISE, reference, fake, compute, cost, sample_inputs, onnx=OnnxFunction(onnx_body)
).register()
