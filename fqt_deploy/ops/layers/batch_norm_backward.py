"""``fqt::batch_norm_backward``: gradients of batch normalization, channels last."""

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


def _kept_samples(emit: Emitter, gradient: fx.Node, x: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Both operands of the sums, without the samples that were pruned: these add nothing."""
    if gradient.target is not fqt.scatter_rows.default:
        return gradient, x
    kept: Any = gradient.args[0]
    slot: Any = gradient.args[1]
    return kept, emit(fqt.gather_rows.default, x, emit.item(slot.args[0], 0))


@define(
    kind=Kind.COMPOSITE,
    batch=channels_last("gradient", "x"),
    zero=NEVER_ZERO,
    sign=ANY_SIGN,
    nan=Nan.UNKNOWN,
    layout=Layout.OPAQUE,
)
class BatchNormBackward(FqtOp):
    """Gradients with respect to input, weight and bias.

    ``dx = weight / sigma * (g - mean(g) - c * sum(g c) / sum(c^2))`` with ``c`` the centered input. On the whole batch
    ``sum(c^2)`` is known from the forward statistics. When only some samples are present (``projected``), ``c`` is
    centered over these, so that the result stays orthogonal to one and to the normalized input over them.

    With ``synchronized`` all means, of ``projected`` too, go over the rows of all processes: ``dx`` is the gradient of
    the sum of their losses. ``dweight`` and ``dbias`` remain those of the own rows, because gradients of parameters are
    averaged anyway.

    Attributes:
        gradient: [..., C] float32.
        x: [..., C] float32, the input of forward.
        weight: [C] float32 or None.
        mean: [C] float32, batch mean of forward.
        inverse: [C] float32, 1 / sqrt(variance + eps) of forward.
        projected: the rows are a subset of those that forward saw.
        synchronized: forward took the statistics of all processes that train together.

    Returns:
        dx [..., C], dweight [C], dbias [C]; float32.
    """

    gradient: Operand
    x: Operand
    weight: OptionalOperand
    mean: Operand
    inverse: Operand
    projected: bool
    synchronized: bool = False

    tolerance = 1e-4

    def reference(self) -> tuple[Tensor, Tensor, Tensor]:
        """The result in plain PyTorch."""
        g, rows = self.gradient.flatten(0, -2), self.x.flatten(0, -2)
        center = rows.mean(0) if self.projected else self.mean
        c = rows - center
        energy = (c * c).mean(0) if self.projected else self.inverse**-2
        scale = self.inverse if self.weight is None else self.weight * self.inverse
        slope = (g * c).mean(0) / energy.clamp_min(1e-12)
        dx = (g - g.mean(0) - c * slope) * scale
        return dx.view_as(self.x), (g * (rows - self.mean)).sum(0) * self.inverse, g.sum(0)

    def fake(self) -> tuple[Tensor, Tensor, Tensor]:
        """Shape rule: dx as x, the rest [C]."""
        if self.gradient.shape != self.x.shape:
            raise ValueError(f"gradient {tuple(self.gradient.shape)} and input {tuple(self.x.shape)} differ in shape")
        return torch.empty_like(self.x), torch.empty_like(self.mean), torch.empty_like(self.mean)

    def cost(self) -> Cost:
        """Two passes over both operands and one write."""
        return Cost(flops=10 * self.x.numel(), bytes_moved=5 * tensor_bytes(self.x))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """Whole batch and a subset of it."""
        g = torch.Generator().manual_seed(0)
        x = torch.randn(6, 3, 3, 8, generator=g)
        mean, variance = x.flatten(0, 2).mean(0), x.flatten(0, 2).var(0, correction=0)
        gradient = torch.randn(x.shape, generator=g)
        weight = torch.rand(8, generator=g) + 0.5
        inverse = (variance + 1e-5).rsqrt()
        yield gradient, x, weight, mean, inverse, False
        yield gradient[:2], x[:2], weight, mean, inverse, True
        yield gradient, x, None, mean, inverse, False
        yield gradient, x, weight, mean, inverse, False, True
        yield gradient[:2], x[:2], weight, mean, inverse, True, True

    def decompose(self, emit: Emitter) -> tuple[fx.Node, fx.Node, fx.Node]:
        """One reduction, [C] coefficients, and ``dx = a * g + (x - center) * b + d``."""
        count = 1
        for extent in shape(self.x)[:-1]:
            count *= extent
        sums = emit(fqt.channel_gradient_sums.default, *_kept_samples(emit, self.gradient, self.x), self.mean)
        total, correlation = emit.item(sums, 0), emit.item(sums, 1)
        dweight, dbias = emit(aten.mul.Tensor, correlation, self.inverse), total
        moments = []
        if self.projected:
            kept = emit(fqt.channel_moments.default, self.x)
            moments = [emit.item(kept, i) for i in range(2)]
        if self.synchronized:
            op = fqt.synchronize_kept_sums if self.projected else fqt.synchronize_sums
            everywhere = emit(op.default, total, correlation, *moments, count)
            total, correlation, *moments = (emit.item(everywhere, i) for i in range(2 + len(moments)))
        center, centered = self.mean, correlation
        if self.projected:
            center, energy = moments
            moved = emit(aten.mul.Tensor, total, emit(aten.sub.Tensor, self.mean, center))
            centered = emit(aten.add.Tensor, correlation, moved)
            slope = emit(aten.div.Tensor, centered, emit(aten.clamp_min.default, energy, 1e-12))
        else:
            slope = emit(aten.mul.Tensor, centered, emit(aten.mul.Tensor, self.inverse, self.inverse))
        scale = self.inverse if self.weight is None else emit(aten.mul.Tensor, self.weight, self.inverse)
        over = emit(aten.mul.Tensor, scale, -1.0 / count)
        b = emit(aten.mul.Tensor, slope, over)
        d = emit(aten.mul.Tensor, total, over)
        dx = emit(
            aten.add.Tensor,
            emit(aten.mul.Tensor, self.gradient, scale),
            emit(aten.mul.Tensor, emit(aten.sub.Tensor, self.x, center), b),
        )
        return emit(aten.add.Tensor, dx, d), dweight, dbias
