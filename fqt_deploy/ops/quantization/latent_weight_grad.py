"""``fqt::latent_weight_grad``: gradient of a latent weight from that of its scaled signs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from fqt_deploy.core.graph import Emitter, shape
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples

aten = torch.ops.aten
fqt = torch.ops.fqt


@define(kind=Kind.COMPOSITE, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class LatentWeightGrad(FqtOp):
    """Backward of ``alpha * sign(w)`` with ``alpha = mean |w|`` and the straight-through gradient of the sign.

    Attributes:
        dweff: [O, I, KH, KW] float32, gradient of ``alpha * sign(w)``.
        w: [O, I, KH, KW] float32, latent weight.
        scale_free: the loss does not depend on ``alpha``, so the true ``dweff`` is orthogonal to ``sign(w)`` in every
            output channel; what this one has along it is noise, and is taken out.

    Returns:
        [O, I, KH, KW] float32; sign(0) is -1 throughout.
    """

    dweff: Operand
    w: Operand
    scale_free: bool

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        sign = torch.where(self.w > 0, 1.0, -1.0)
        axes = [1, 2, 3]
        alpha = self.w.abs().mean(axes, keepdim=True)
        dalpha = (self.dweff * sign).sum(axes, keepdim=True)
        share = dalpha * sign / self.w[0].numel()
        through = torch.where(self.w.abs() < 1, (self.dweff - share if self.scale_free else self.dweff) * alpha, 0.0)
        return (through if self.scale_free else through + share).contiguous()

    def fake(self) -> Tensor:
        """Shape rule: a tensor like ``w``."""
        if self.dweff.shape != self.w.shape or self.w.dim() != 4:
            raise ValueError(
                f"gradient {tuple(self.dweff.shape)} and weight {tuple(self.w.shape)} differ or have not four axes"
            )
        return self.w.new_empty(tuple(self.w.shape))

    def cost(self) -> Cost:
        """The cost: three operations an element for the sums and three for the result."""
        return Cost(flops=6 * self.w.numel(), bytes_moved=3 * tensor_bytes(self.w))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """Convolutions, a linear layer, zeros and the edges of the pass band, with and without a scale that matters."""
        g = torch.Generator().manual_seed(0)
        for extents in ((16, 32, 3, 3), (7, 5, 3, 1), (10, 64, 1, 1)):
            for scale_free in (False, True):
                yield torch.randn(extents, generator=g), torch.randn(extents, generator=g), scale_free
        edges = torch.tensor([0.0, -0.0, 1.0, -1.0, 0.5, -0.5]).view(2, 3, 1, 1)
        for scale_free in (False, True):
            yield torch.randn(2, 3, 1, 1, generator=g), edges, scale_free

    def decompose(self, emit: Emitter) -> fx.Node:
        """The op in other ops: one sum for each output channel; the rest can be part of the optimizer's kernel."""
        channels, *weight = shape(self.w)
        count = math.prod(weight)
        g, latent = (emit(aten.view.default, tensor, [channels, count]) for tensor in (self.dweff, self.w))
        sign = emit(fqt.sign.default, latent)
        dalpha = emit(aten.sum.dim_IntList, emit(aten.mul.Tensor, g, sign), [1])
        mean = emit(aten.view.default, emit(aten.mul.Tensor, dalpha, 1.0 / count), [channels, 1])
        share = emit(aten.mul.Tensor, sign, mean)
        alpha = emit(aten.view.default, emit(fqt.weight_scale.default, self.w), [channels, 1])
        passing = emit(aten.sub.Tensor, g, share) if self.scale_free else g
        through = emit(fqt.straight_through.default, emit(aten.mul.Tensor, passing, alpha), latent)
        return emit(
            aten.view.default, through if self.scale_free else emit(aten.add.Tensor, through, share), shape(self.w)
        )
