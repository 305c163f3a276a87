"""``fqt::conv2d_weight_grad``: gradient of a convolution's weight in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops import conv2d
from fqt_deploy.ops.convolution_shape import input_position, output_extents
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(x: Tensor, g: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """Correlation of the input with the output's gradient.

    Args:
        x: [N, H, W, I] float32.
        g: [N, OH, OW, O] float32.
        kernel: KH, KW.
        stride: of the forward convolution.
        padding: of the forward convolution.

    Returns:
        [O, I, KH, KW] float32.
    """
    size = (g.shape[3], x.shape[3], *kernel)
    return torch.nn.grad.conv2d_weight(x.permute(0, 3, 1, 2), size, g.permute(0, 3, 1, 2), stride, padding).contiguous()


def fake(x: Tensor, g: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """Shape rule of ``reference``."""
    if output_extents(list(x.shape[1:3]), kernel, stride, padding) != list(g.shape[1:3]):
        raise ValueError(f"gradient {tuple(g.shape)} does not belong to an input {tuple(x.shape)}")
    return x.new_empty((g.shape[3], x.shape[3], *kernel))


def compute(x: te.Tensor, g: te.Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> te.Tensor:
    """Sum over all output positions."""
    n, h, width, i = (int(d) for d in x.shape)
    _, oh, ow, o = (int(d) for d in g.shape)
    b, y, z = (te.reduce_axis((0, e), a) for e, a in zip((n, oh, ow), ("b", "y", "z"), strict=True))

    def term(kh: Any, kw: Any, c: Any, out: Any) -> Any:
        inside, at_h, at_w = input_position(y, z, kh, kw, [h, width], stride, padding)
        return te.sum(tirx.if_then_else(inside, x[b, at_h, at_w, c] * g[b, y, z, out], 0.0), axis=[b, y, z])

    sums = te.compute((*kernel, i, o), term, name="conv2d_weight_grad_sums")
    return te.compute((o, i, *kernel), lambda out, c, kh, kw: sums[kh, kw, c, out], name="conv2d_weight_grad")


def cost(x: Tensor, g: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Cost:
    """Two operations a multiply-accumulate of forward."""
    w = fake(x, g, kernel, stride, padding)
    return Cost(flops=2 * g.numel() * w[0].numel(), bytes_moved=tensor_bytes(x, g, w))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """The cases of ``conv2d``."""
    generator = torch.Generator().manual_seed(0)
    for n, h, w, i, o, kernel, stride, padding in conv2d.CASES:
        hw = output_extents([h, w], kernel, stride, padding)
        x = torch.randn(n, h, w, i, generator=generator)
        yield x, torch.randn(n, *hw, o, generator=generator), kernel, stride, padding


conv2d_weight_grad = OpSpec(
    "conv2d_weight_grad", OpKind.PRODUCT, reference, fake, compute, cost, sample_inputs, tolerance=1e-4
).register()
