"""``fqt::dequantize_weight_grad``: from the integer weight-gradient product to the gradient, pruned channels zero."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(
    product: Tensor, scale: Tensor, zero: Tensor, sums: Tensor, slot: Tensor | None, kernel: list[int]
) -> Tensor:
    """``scale * product + zero * sums`` (algorithm, section 3).

    Args:
        product: [K, T, I] int32, codes times signs of the kept channels.
        scale: [K] float32.
        zero: [K] float32.
        sums: [T, I] int32, see ``position_sums``.
        slot: [O] int32, each channel's row of ``product`` or -1; None when all are kept.
        kernel: KH, KW; T = KH * KW.

    Returns:
        [O, I, KH, KW] float32.
    """
    kept = product.float() * scale.view(-1, 1, 1) + sums.float() * zero.view(-1, 1, 1)
    if slot is not None:
        kept = torch.where((slot >= 0).view(-1, 1, 1), kept[slot.clamp(min=0).long()], 0.0)
    return kept.transpose(1, 2).unflatten(2, tuple(kernel)).contiguous()


def fake(product: Tensor, scale: Tensor, zero: Tensor, sums: Tensor, slot: Tensor | None, kernel: list[int]) -> Tensor:
    """Shape rule of ``reference``."""
    kept, taps, channels = product.shape
    if tuple(sums.shape) != (taps, channels) or scale.shape != (kept,) or taps != kernel[0] * kernel[1]:
        raise ValueError(f"product {tuple(product.shape)} and sums {tuple(sums.shape)} do not match")
    return scale.new_empty((kept if slot is None else slot.shape[0], channels, *kernel))


def compute(
    product: te.Tensor, scale: te.Tensor, zero: te.Tensor, sums: te.Tensor, slot: Any, kernel: list[int]
) -> te.Tensor:
    """Element-wise; rows of pruned channels are never read."""
    channels = int(product.shape[2])

    def gradient(o: Any, i: Any, kh: Any, kw: Any) -> Any:
        tap = kh * kernel[1] + kw
        row = o if slot is None else slot[o]
        value = product[row, tap, i].astype("float32") * scale[row] + sums[tap, i].astype("float32") * zero[row]
        return value if slot is None else tirx.if_then_else(slot[o] >= 0, value, tirx.const(0.0, "float32"))

    outputs = int(product.shape[0]) if slot is None else int(slot.shape[0])
    return te.compute((outputs, channels, *kernel), gradient, name="dequantize_weight_grad")


def cost(product: Tensor, *_: Any) -> Cost:
    """Three operations an element."""
    return Cost(flops=3 * product.numel(), bytes_moved=2 * tensor_bytes(product))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """All channels, and some."""
    g = torch.Generator().manual_seed(0)
    for slot in (None, torch.tensor([-1, 0, 1, -1, 2], dtype=torch.int32)):
        product = torch.randint(-99, 99, (3, 6, 7), generator=g, dtype=torch.int32)
        sums = torch.randint(-99, 99, (6, 7), generator=g, dtype=torch.int32)
        yield product, torch.rand(3, generator=g), torch.randn(3, generator=g), sums, slot, [2, 3]


dequantize_weight_grad = OpSpec(
    "dequantize_weight_grad", OpKind.ELEMENTWISE, reference, fake, compute, cost, sample_inputs
).register()
