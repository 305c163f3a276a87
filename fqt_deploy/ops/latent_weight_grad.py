"""``fqt::latent_weight_grad``: from the gradient of the scaled sign weight to that of the latent weight."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(effective: Tensor, w: Tensor) -> Tensor:
    """``effective * alpha * 1[|w| < 1] + dalpha * sign(w) / n`` (algorithm, section 3).

    Args:
        effective: [O, I, KH, KW] float32, gradient of ``alpha * sign(w)``.
        w: [O, I, KH, KW] float32.

    Returns:
        [O, I, KH, KW] float32.
    """
    sign = torch.where(w > 0, 1.0, -1.0)
    count = w[0].numel()
    alpha = w.abs().flatten(1).mean(1).view(-1, 1, 1, 1)
    dalpha = (effective * sign).flatten(1).sum(1).view(-1, 1, 1, 1)
    return torch.where(w.abs() < 1, effective * alpha, 0.0) + dalpha * sign / count


def fake(effective: Tensor, w: Tensor) -> Tensor:
    """Shape rule: as ``w``."""
    if effective.shape != w.shape:
        raise ValueError(f"gradient {tuple(effective.shape)} and weight {tuple(w.shape)} differ in shape")
    return torch.empty_like(w)


def compute(effective: te.Tensor, w: te.Tensor) -> te.Tensor:
    """Two sums a channel, then element-wise."""
    o, *rest = (int(d) for d in w.shape)
    count = float(math.prod(rest))

    def signed(value: Any, weight: Any) -> Any:
        return tirx.Select(weight > 0.0, value, 0.0 - value)

    def total(term: Any, name: str) -> te.Tensor:
        axes = [te.reduce_axis((0, e)) for e in rest]
        return te.compute((o,), lambda c: te.sum(term((c, *axes)), axis=axes), name=f"latent_weight_grad_{name}")

    alpha = total(lambda i: tirx.abs(w[i]), "alpha")
    dalpha = total(lambda i: signed(effective[i], w[i]), "dalpha")

    def gradient(*i: Any) -> Any:
        through = tirx.Select(tirx.abs(w[i]) < 1.0, effective[i] * (alpha[i[0]] / count), 0.0)
        return through + signed(dalpha[i[0]], w[i]) / count

    return te.compute(w.shape, gradient, name="latent_weight_grad")


def cost(effective: Tensor, w: Tensor) -> Cost:
    """Eight operations an element."""
    return Cost(flops=8 * w.numel(), bytes_moved=3 * tensor_bytes(w))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Weights inside and outside of the pass band."""
    g = torch.Generator().manual_seed(0)
    for shape in ((16, 32, 3, 3), (7, 33, 1, 1)):
        yield torch.randn(shape, generator=g), torch.randn(shape, generator=g)


latent_weight_grad = OpSpec(
    "latent_weight_grad", OpKind.ROOT, reference, fake, compute, cost, sample_inputs, tolerance=1e-4
).register()
