"""``fqt::latent_weight_grad``: gradient of a latent weight from that of its scaled signs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes
from fqt_deploy.ops.weight_scale import channel_magnitude, elements_per_channel


def reference(dweff: Tensor, w: Tensor) -> Tensor:
    """Backward of ``alpha * sign(w)`` with ``alpha = mean |w|`` and the straight-through gradient of the sign.

    Args:
        dweff: [O, I, KH, KW] float32, gradient of ``alpha * sign(w)``.
        w: [O, I, KH, KW] float32, latent weight.

    Returns:
        [O, I, KH, KW] float32; sign(0) is -1 throughout.
    """
    sign = torch.where(w > 0, 1.0, -1.0)
    axes = [1, 2, 3]
    alpha = w.abs().mean(axes, keepdim=True)
    dalpha = (dweff * sign).sum(axes, keepdim=True)
    through = torch.where(w.abs() < 1, dweff * alpha, 0.0)
    return (through + dalpha * sign / w[0].numel()).contiguous()


def fake(dweff: Tensor, w: Tensor) -> Tensor:
    """Shape rule: as ``w``."""
    if dweff.shape != w.shape or w.dim() != 4:
        raise ValueError(f"gradient {tuple(dweff.shape)} and weight {tuple(w.shape)} differ or have not four axes")
    return w.new_empty(tuple(w.shape))


def compute(dweff: te.Tensor, w: te.Tensor) -> te.Tensor:
    """Two sums an output channel, then an element-wise stage."""
    out_channels, *rest = (int(d) for d in w.shape)
    count = tirx.const(float(elements_per_channel(w)), "float32")
    one, zero = tirx.const(1.0, "float32"), tirx.const(0.0, "float32")
    axes = [te.reduce_axis((0, extent), axis) for extent, axis in zip(rest, ("i", "kh", "kw"), strict=True)]

    def signed(weight: Any, value: Any) -> Any:
        return value * tirx.Select(weight > zero, one, -one)

    alpha = channel_magnitude(w, "latent_weight_grad_alpha")
    dalpha = te.compute(
        (out_channels,),
        lambda o: te.sum(signed(w[(o, *axes)], dweff[(o, *axes)]), axis=axes),
        name="latent_weight_grad_dalpha",
    )

    def gradient(o: Any, *at: Any) -> Any:
        weight = w[(o, *at)]
        through = tirx.Select(tirx.abs(weight) < one, dweff[(o, *at)] * (alpha[o] / count), zero)
        return through + signed(weight, dalpha[o] / count)

    return te.compute(w.shape, gradient, name="latent_weight_grad")


def cost(dweff: Tensor, w: Tensor) -> Cost:
    """Three operations an element for the sums and three for the result."""
    return Cost(flops=6 * w.numel(), bytes_moved=3 * tensor_bytes(w))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Convolutions, a linear layer, zeros and the edges of the pass band."""
    g = torch.Generator().manual_seed(0)
    for shape in ((16, 32, 3, 3), (7, 5, 3, 1), (10, 64, 1, 1)):
        yield torch.randn(shape, generator=g), torch.randn(shape, generator=g)
    edges = torch.tensor([0.0, -0.0, 1.0, -1.0, 0.5, -0.5]).view(2, 3, 1, 1)
    yield torch.randn(2, 3, 1, 1, generator=g), edges


latent_weight_grad = OpSpec("latent_weight_grad", OpKind.ROOT, reference, fake, compute, cost, sample_inputs).register()
