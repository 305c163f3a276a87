"""``fqt::scatter_rows``: kept rows back in their places, zero elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops.lib.onnx_body import Body, OnnxFunction
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(x: Tensor, slot: Tensor) -> Tensor:
    """Row ``slot[g]`` of ``x`` for each group, zero where the slot is negative.

    Args:
        x: [K, ...] of any type.
        slot: [G] int32, each in [-1, K).

    Returns:
        [G, ...] of the type of ``x``.
    """
    result = x.new_zeros((slot.shape[0], *x.shape[1:]))
    kept = slot >= 0
    result[kept] = x[slot[kept].long()]
    return result


def fake(x: Tensor, slot: Tensor) -> Tensor:
    """Shape rule: [K, ...], [G] -> [G, ...]."""
    if x.dim() < 1 or slot.dim() != 1:
        raise ValueError(f"cannot scatter rows of {tuple(x.shape)} to slots {tuple(slot.shape)}")
    return x.new_empty((slot.shape[0], *x.shape[1:]))


def compute(x: te.Tensor, slot: te.Tensor) -> te.Tensor:
    """One guarded indirect read an element."""
    shape = [int(slot.shape[0]), *(int(d) for d in x.shape[1:])]
    zero = tirx.const(0, str(x.dtype))

    def element(g: Any, *rest: Any) -> Any:
        return tirx.if_then_else(slot[g] >= 0, x[(slot[g], *rest)], zero)

    return te.compute(shape, element, name="scatter_rows")


def cost(x: Tensor, slot: Tensor) -> Cost:
    """Reads the kept rows, writes all."""
    return Cost(bytes_moved=tensor_bytes(x, slot, fake(x, slot)))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Every type in use, any rank, one row, all rows kept."""
    g = torch.Generator().manual_seed(0)
    some = torch.tensor([-1, 0, 1, -1, -1, 2, -1], dtype=torch.int32)
    yield torch.randn(3, 4, 16, generator=g), some
    yield torch.randn(3, generator=g), some
    yield torch.randint(-9, 9, (1, 3), generator=g, dtype=torch.int32), torch.tensor([-1, 0], dtype=torch.int32)
    yield torch.rand(3, 5, generator=g) > 0.5, some
    yield torch.randn(2, 3, 3, 2, generator=g), torch.tensor([0, 1], dtype=torch.int32)


def onnx_body(op: Body, x: str, slot: str) -> str:
    """A gather from the rows and one more of zeros; slot -1 is the last row."""
    extents = op.shape(1, op("Shape", x, start=1))
    nothing = op("Expand", op("CastLike", op.constant(0, "int32"), x), extents)
    return op("Gather", op("Concat", x, nothing, axis=0), slot, axis=0)


scatter_rows = OpSpec(
    "scatter_rows", OpKind.ELEMENTWISE, reference, fake, compute, cost, sample_inputs, onnx=OnnxFunction(onnx_body)
).register()
