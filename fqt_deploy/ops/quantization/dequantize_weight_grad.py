"""``fqt::dequantize_weight_grad``: float weight gradient from the integer product of kept channels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops.lib.onnx_body import Body, OnnxFunction
from fqt_deploy.ops.selection import scatter_rows
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(product: Tensor, scale: Tensor, zero: Tensor, sums: Tensor, slot: Tensor | None) -> Tensor:
    """``scale * product + zero * sums`` of kept output channels, zero for pruned ones.

    Args:
        product: [K, ...] int32, laid out like the weight or flat, see ``bitplane_weight_grad``.
        scale: [K] float32, step of each channel's grid.
        zero: [K] float32, value of code 0.
        sums: [...] int32, see ``position_sums``.
        slot: [O] int32, row of ``product`` or -1 for a pruned channel; None where every channel was kept in order.

    Returns:
        [O, ...] float32.
    """
    per_channel = [-1, *[1] * sums.dim()]
    rows = scale.view(per_channel) * product.float() + zero.view(per_channel) * sums.float()
    if slot is not None:
        full = rows.new_zeros((slot.shape[0], *rows.shape[1:]))
        kept = slot >= 0
        full[kept] = rows[slot[kept].long()]
        rows = full
    return rows


def fake(product: Tensor, scale: Tensor, zero: Tensor, sums: Tensor, slot: Tensor | None) -> Tensor:
    """Shape rule of ``reference``."""
    kept, *weight = product.shape
    if list(sums.shape) != weight:
        raise ValueError(f"product {tuple(product.shape)} and sums {tuple(sums.shape)} do not match")
    if tuple(scale.shape) != (kept,) or tuple(zero.shape) != (kept,):
        raise ValueError(f"grid {tuple(scale.shape)}, {tuple(zero.shape)} does not fit {kept} channels")
    return scale.new_empty((kept if slot is None else slot.shape[0], *weight))


def compute(
    product: te.Tensor, scale: te.Tensor, zero: te.Tensor, sums: te.Tensor, slot: te.Tensor | None
) -> te.Tensor:
    """Element-wise; reads of pruned channels are guarded."""
    kept, *weight = (int(d) for d in product.shape)
    out_channels = kept if slot is None else int(slot.shape[0])

    def element(o: Any, *at: Any) -> Any:
        row: Any = o if slot is None else slot[o]
        value = scale[row] * product[(row, *at)].astype("float32") + zero[row] * sums[at].astype("float32")
        return value if slot is None else tirx.if_then_else(row >= 0, value, tirx.const(0.0, "float32"))

    return te.compute((out_channels, *weight), element, name="dequantize_weight_grad")


def cost(product: Tensor, scale: Tensor, zero: Tensor, sums: Tensor, slot: Tensor | None) -> Cost:
    """Three operations a kept element."""
    result = fake(product, scale, zero, sums, slot)
    slots = [] if slot is None else [slot]
    moved = tensor_bytes(product, scale, zero, sums, *slots, result)
    return Cost(flops=3 * product.numel(), bytes_moved=moved)


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Every channel kept, some pruned, one kept, a linear layer."""
    g = torch.Generator().manual_seed(0)
    some = torch.tensor([-1, 0, 1, -1, -1, 2, 3, -1], dtype=torch.int32)
    one = torch.tensor([-1, -1, 0], dtype=torch.int32)
    cases = ((16, 32, [3, 3], None), (4, 5, [3, 1], some), (1, 64, [1, 1], one), (10, 33, [1, 1], None))
    for kept, channels, kernel, slot in cases:
        weight = (channels, *kernel) if kept > 1 else (channels * kernel[0] * kernel[1],)
        product = torch.randint(-900, 900, (kept, *weight), generator=g, dtype=torch.int32)
        sums = torch.randint(-90, 90, weight, generator=g, dtype=torch.int32)
        yield product, torch.rand(kept, generator=g), torch.randn(kept, generator=g), sums, slot


def onnx_neutral(
    product: Tensor, scale: Tensor, zero: Tensor, sums: Tensor, slot: Tensor | None
) -> dict[str, Tensor]:  # fmt: skip
    """Without slots, every row is in its place."""
    return {"slot": torch.arange(product.shape[0], dtype=torch.int32)}


def onnx_body(op: Body, product: str, scale: str, zero: str, sums: str, slot: str) -> str:
    """Flat rows of kept channels, then those of all channels."""
    flat = op.cast(op.reshape(product, 0, -1), "float32")
    scaled = op("Mul", op.reshape(scale, -1, 1), flat)
    offset = op("Mul", op.reshape(zero, -1, 1), op.reshape(op.cast(sums, "float32"), 1, -1))
    rows = scatter_rows.onnx_body(op, op("Add", scaled, offset), slot)
    return op.reshape(rows, op("Shape", slot), op("Shape", product, start=1))


dequantize_weight_grad = OpSpec(
    "dequantize_weight_grad",
    OpKind.ELEMENTWISE,
    reference,
    fake,
    compute,
    cost,
    sample_inputs,
    onnx=OnnxFunction(onnx_body, neutral=onnx_neutral),
).register()
