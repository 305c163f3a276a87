"""``fqt::batch_norm``: batch normalization with batch statistics, channels last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from fqt_deploy.core.graph import Emitter, shape
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes

aten = torch.ops.aten
Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def reference(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> Outputs:
    """Normalize each channel by its statistics over the batch.

    Args:
        x: [..., C] float32.
        weight: [C] float32 or None.
        bias: [C] float32 or None.
        running_mean: [C] float32 or None.
        running_var: [C] float32 or None.
        momentum: weight of the new statistics in the running ones.
        eps: added to the variance.

    Returns:
        y [..., C]; batch mean [C]; 1 / sqrt(variance + eps) [C]; the two updated running statistics [C] (the variance
        unbiased, as in PyTorch); all float32.
    """
    rows = x.flatten(0, -2)
    mean, variance = rows.mean(0), rows.var(0, correction=0)
    inverse = (variance + eps).rsqrt()
    scale = inverse if weight is None else weight * inverse
    y = (x - mean) * scale
    count = rows.shape[0]
    unbiased = variance * (count / max(count - 1, 1))
    return (
        y if bias is None else y + bias,
        mean,
        inverse,
        mean.clone() if running_mean is None else running_mean * (1 - momentum) + mean * momentum,
        variance.clone() if running_var is None else running_var * (1 - momentum) + unbiased * momentum,
    )


def fake(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> Outputs:
    """Shape rule: y as x, the rest [C]."""
    channel = [x.new_empty(x.shape[-1]) for _ in range(4)]
    return torch.empty_like(x), channel[0], channel[1], channel[2], channel[3]


def decompose(
    emit: Emitter,
    x: fx.Node,
    weight: fx.Node | None,
    bias: fx.Node | None,
    running_mean: fx.Node | None,
    running_var: fx.Node | None,
    momentum: float,
    eps: float,
) -> tuple[fx.Node, ...]:
    """One reduction, a few [C] expressions and one element-wise expression."""
    moments = emit(torch.ops.fqt.channel_moments.default, x)
    mean, variance = emit.item(moments, 0), emit.item(moments, 1)
    inverse = emit(aten.rsqrt.default, emit(aten.add.Tensor, variance, eps))
    scale = inverse if weight is None else emit(aten.mul.Tensor, weight, inverse)
    y = emit(aten.mul.Tensor, emit(aten.sub.Tensor, x, mean), scale)
    if bias is not None:
        y = emit(aten.add.Tensor, y, bias)
    count = 1
    for extent in shape(x)[:-1]:
        count *= extent

    def blend(old: fx.Node | None, new: fx.Node, factor: float) -> fx.Node:
        if old is None:
            return emit(aten.mul.Tensor, new, 1.0)
        kept = emit(aten.mul.Tensor, old, 1 - momentum)
        return emit(aten.add.Tensor, kept, emit(aten.mul.Tensor, new, factor))

    unbiased = count / max(count - 1, 1)
    return (
        y,
        mean,
        inverse,
        blend(running_mean, mean, momentum),
        blend(running_var, variance, momentum * unbiased),
    )


def cost(x: Tensor, *_: Any) -> Cost:
    """Statistics and normalization: eight operations an element, two reads and one write."""
    return Cost(flops=8 * x.numel(), bytes_moved=3 * tensor_bytes(x))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """With and without affine parameters."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 3, 8, generator=g)
    c = [torch.rand(8, generator=g) + 0.5 for _ in range(4)]
    yield x, c[0], c[1], c[2], c[3], 0.1, 1e-5
    yield x, None, None, c[2], c[3], 0.2, 1e-3


batch_norm = OpSpec(
    "batch_norm", OpKind.COMPOSITE, reference, fake, None, cost, sample_inputs, tolerance=1e-4, decompose=decompose
).register()
