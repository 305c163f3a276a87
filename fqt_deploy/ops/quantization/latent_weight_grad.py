"""``fqt::latent_weight_grad``: gradient of a latent weight from that of its scaled signs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from fqt_deploy.core.graph import Emitter, shape
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes

aten = torch.ops.aten
fqt = torch.ops.fqt


def reference(dweff: Tensor, w: Tensor, scale_free: bool) -> Tensor:
    """Backward of ``alpha * sign(w)`` with ``alpha = mean |w|`` and the straight-through gradient of the sign.

    Args:
        dweff: [O, I, KH, KW] float32, gradient of ``alpha * sign(w)``.
        w: [O, I, KH, KW] float32, latent weight.
        scale_free: the loss does not depend on ``alpha``, so the true ``dweff`` is orthogonal to ``sign(w)`` in every
            output channel; what this one has along it is noise, and is taken out.

    Returns:
        [O, I, KH, KW] float32; sign(0) is -1 throughout.
    """
    sign = torch.where(w > 0, 1.0, -1.0)
    axes = [1, 2, 3]
    alpha = w.abs().mean(axes, keepdim=True)
    dalpha = (dweff * sign).sum(axes, keepdim=True)
    share = dalpha * sign / w[0].numel()
    through = torch.where(w.abs() < 1, (dweff - share if scale_free else dweff) * alpha, 0.0)
    return (through if scale_free else through + share).contiguous()


def fake(dweff: Tensor, w: Tensor, scale_free: bool) -> Tensor:
    """Shape rule: as ``w``."""
    if dweff.shape != w.shape or w.dim() != 4:
        raise ValueError(f"gradient {tuple(dweff.shape)} and weight {tuple(w.shape)} differ or have not four axes")
    return w.new_empty(tuple(w.shape))


def decompose(emit: Emitter, dweff: fx.Node, w: fx.Node, scale_free: bool) -> fx.Node:
    """One sum for each output channel; the rest is element-wise and can be part of the optimizer's kernel."""
    channels, *weight = shape(w)
    count = math.prod(weight)
    g, latent = (emit(aten.view.default, tensor, [channels, count]) for tensor in (dweff, w))
    sign = emit(fqt.sign.default, latent)
    dalpha = emit(aten.sum.dim_IntList, emit(aten.mul.Tensor, g, sign), [1])
    mean = emit(aten.view.default, emit(aten.mul.Tensor, dalpha, 1.0 / count), [channels, 1])
    share = emit(aten.mul.Tensor, sign, mean)
    alpha = emit(aten.view.default, emit(fqt.weight_scale.default, w), [channels, 1])
    passing = emit(aten.sub.Tensor, g, share) if scale_free else g
    through = emit(fqt.straight_through.default, emit(aten.mul.Tensor, passing, alpha), latent)
    return emit(aten.view.default, through if scale_free else emit(aten.add.Tensor, through, share), shape(w))


def cost(dweff: Tensor, w: Tensor, scale_free: bool) -> Cost:
    """Three operations an element for the sums and three for the result."""
    return Cost(flops=6 * w.numel(), bytes_moved=3 * tensor_bytes(w))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Convolutions, a linear layer, zeros and the edges of the pass band, with and without a scale that matters."""
    g = torch.Generator().manual_seed(0)
    for extents in ((16, 32, 3, 3), (7, 5, 3, 1), (10, 64, 1, 1)):
        for scale_free in (False, True):
            yield torch.randn(extents, generator=g), torch.randn(extents, generator=g), scale_free
    edges = torch.tensor([0.0, -0.0, 1.0, -1.0, 0.5, -0.5]).view(2, 3, 1, 1)
    for scale_free in (False, True):
        yield torch.randn(2, 3, 1, 1, generator=g), edges, scale_free


latent_weight_grad = OpSpec(
    "latent_weight_grad", OpKind.COMPOSITE, reference, fake, None, cost, sample_inputs, decompose=decompose
).register()
