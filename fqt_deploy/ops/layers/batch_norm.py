"""``fqt::batch_norm``: batch normalization with batch statistics, channels last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from fqt_deploy.core.graph import Emitter, shape
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, OptionalOperand, define, tensor_bytes
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, channels_last

aten = torch.ops.aten
fqt = torch.ops.fqt


@define(
    kind=Kind.COMPOSITE, batch=channels_last("x"), zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE
)
class BatchNorm(FqtOp):
    """Normalize each channel by its statistics over the batch.

    Attributes:
        x: [..., C] float32.
        weight: [C] float32 or None.
        bias: [C] float32 or None.
        running_mean: [C] float32 or None.
        running_var: [C] float32 or None.
        momentum: weight of the new statistics in the running ones.
        eps: added to the variance.
        synchronized: the statistics are those of all processes that train together; one alone has its own.

    Returns:
        y [..., C]; batch mean [C]; 1 / sqrt(variance + eps) [C]; the two updated running statistics [C] (the variance
        unbiased, as in PyTorch); all float32.
    """

    x: Operand
    weight: OptionalOperand
    bias: OptionalOperand
    running_mean: OptionalOperand
    running_var: OptionalOperand
    momentum: float
    eps: float
    synchronized: bool = False

    tolerance = 1e-4

    def reference(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The result in plain PyTorch."""
        rows = self.x.flatten(0, -2)
        mean = rows.mean(0)
        centred = self.x - mean
        variance = centred.flatten(0, -2).square().mean(0)  # as accurate as rows.var(0), which takes ten times as long
        inverse = (variance + self.eps).rsqrt()
        scale = inverse if self.weight is None else self.weight * inverse
        y = centred * scale
        count = rows.shape[0]
        unbiased = variance * _unbiased(count)
        return (
            y if self.bias is None else y + self.bias,
            mean,
            inverse,
            mean.clone()
            if self.running_mean is None
            else self.running_mean * (1 - self.momentum) + mean * self.momentum,
            variance.clone()
            if self.running_var is None
            else self.running_var * (1 - self.momentum) + unbiased * self.momentum,
        )

    def fake(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Shape rule: y as x, the rest [C]."""
        channel = [self.x.new_empty(self.x.shape[-1]) for _ in range(4)]
        return torch.empty_like(self.x), channel[0], channel[1], channel[2], channel[3]

    def cost(self) -> Cost:
        """Statistics and normalization: eight operations an element, two reads and one write."""
        return Cost(flops=8 * self.x.numel(), bytes_moved=3 * tensor_bytes(self.x))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """Yields calls with and without affine parameters."""
        g = torch.Generator().manual_seed(0)
        x = torch.randn(4, 3, 3, 8, generator=g)
        c = [torch.rand(8, generator=g) + 0.5 for _ in range(4)]
        yield x, c[0], c[1], c[2], c[3], 0.1, 1e-5
        yield x, None, None, c[2], c[3], 0.2, 1e-3
        yield x, c[0], c[1], c[2], c[3], 0.1, 1e-5, True

    def decompose(self, emit: Emitter) -> tuple[fx.Node, ...]:
        """One reduction, a few [C] expressions and one element-wise expression."""
        count = 1
        for extent in shape(self.x)[:-1]:
            count *= extent
        moments = emit(fqt.channel_moments.default, self.x)
        mean, variance = emit.item(moments, 0), emit.item(moments, 1)
        unbiased = None
        if self.synchronized:
            moments = emit(fqt.synchronize_moments.default, mean, variance, count)
            mean, variance, unbiased = (emit.item(moments, i) for i in range(3))
        inverse = emit(aten.rsqrt.default, emit(aten.add.Tensor, variance, self.eps))
        scale = inverse if self.weight is None else emit(aten.mul.Tensor, self.weight, inverse)
        y = emit(aten.mul.Tensor, emit(aten.sub.Tensor, self.x, mean), scale)
        if self.bias is not None:
            y = emit(aten.add.Tensor, y, self.bias)

        def blend(old: fx.Node | None, new: fx.Node, factor: float) -> fx.Node:
            if old is None:
                return emit(aten.mul.Tensor, new, 1.0)
            kept = emit(aten.mul.Tensor, old, 1 - self.momentum)
            return emit(aten.add.Tensor, kept, emit(aten.mul.Tensor, new, factor))

        running_mean = blend(self.running_mean, mean, self.momentum)
        if unbiased is None or self.running_var is None:
            return y, mean, inverse, running_mean, blend(self.running_var, variance, self.momentum * _unbiased(count))
        return y, mean, inverse, running_mean, blend(self.running_var, unbiased, self.momentum)


def _unbiased(count: int) -> float:
    """What makes the variance of ``count`` values unbiased."""
    return count / max(count - 1, 1)
