"""``fqt::conv2d_input_grad``: gradient of a convolution's input in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops import conv2d
from fqt_deploy.ops.convolution_shape import output_extents, output_position
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(g: Tensor, w: Tensor, input_hw: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """Transposed convolution of the output's gradient.

    Args:
        g: [N, OH, OW, O] float32.
        w: [O, I, KH, KW] float32.
        input_hw: height and width of the input.
        stride: of the forward convolution.
        padding: of the forward convolution.

    Returns:
        [N, H, W, I] float32.
    """
    size = (g.shape[0], w.shape[1], *input_hw)
    gradient = torch.nn.grad.conv2d_input(size, w, g.permute(0, 3, 1, 2), stride, padding)
    return gradient.permute(0, 2, 3, 1).contiguous()


def fake(g: Tensor, w: Tensor, input_hw: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """Shape rule of ``reference``."""
    if output_extents(input_hw, list(w.shape[2:]), stride, padding) != list(g.shape[1:3]):
        raise ValueError(f"gradient {tuple(g.shape)} does not belong to an input of {input_hw}")
    return g.new_empty((g.shape[0], *input_hw, w.shape[1]))


def compute(g: te.Tensor, w: te.Tensor, input_hw: list[int], stride: list[int], padding: list[int]) -> te.Tensor:
    """Each input position asks the outputs that read it."""
    n, oh, ow, o = (int(d) for d in g.shape)
    _, i, *kernel = (int(d) for d in w.shape)
    kh, kw, c = (te.reduce_axis((0, e), a) for e, a in zip((*kernel, o), ("kh", "kw", "c"), strict=True))

    def term(b: Any, h: Any, z: Any, channel: Any) -> Any:
        inside, y, x = output_position(h, z, kh, kw, [oh, ow], stride, padding)
        return te.sum(tirx.if_then_else(inside, g[b, y, x, c] * w[c, channel, kh, kw], 0.0), axis=[kh, kw, c])

    return te.compute((n, *input_hw, i), term, name="conv2d_input_grad")


def cost(g: Tensor, w: Tensor, input_hw: list[int], stride: list[int], padding: list[int]) -> Cost:
    """Two operations a multiply-accumulate of forward."""
    x = fake(g, w, input_hw, stride, padding)
    return Cost(flops=2 * g.numel() * w[0].numel(), bytes_moved=tensor_bytes(g, w, x))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """The cases of ``conv2d``."""
    generator = torch.Generator().manual_seed(0)
    for n, h, w, i, o, kernel, stride, padding in conv2d.CASES:
        hw = output_extents([h, w], kernel, stride, padding)
        weight = torch.randn(o, i, *kernel, generator=generator)
        yield torch.randn(n, *hw, o, generator=generator), weight, [h, w], stride, padding


conv2d_input_grad = OpSpec(
    "conv2d_input_grad", OpKind.PRODUCT, reference, fake, compute, cost, sample_inputs, tolerance=1e-4
).register()
