"""``fqt::conv2d_input_grad``: gradient of a convolution with respect to its input, channels last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input
from tvm import te, tirx

from fqt_deploy.ops.lib.convolution_shape import output_extents, output_position
from fqt_deploy.ops.lib.onnx_body import Attributes, Body, OnnxFunction, ints
from fqt_deploy.ops.products.conv2d import CONVOLUTION_SAMPLES
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(g: Tensor, w: Tensor, input_hw: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """Transposed convolution of the output gradient.

    Args:
        g: [N, OH, OW, O] float32.
        w: [O, I, KH, KW] float32.
        input_hw: H, W.
        stride: vertical and horizontal.
        padding: zeros above and below, left and right of the input.

    Returns:
        [N, H, W, I] float32.
    """
    size = (g.shape[0], w.shape[1], *input_hw)
    gx: Tensor = conv2d_input(size, w, g.permute(0, 3, 1, 2), stride, padding)  # type: ignore[no-untyped-call]
    return gx.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)


def fake(g: Tensor, w: Tensor, input_hw: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """Shape rule of ``reference``."""
    expected = (g.shape[0], *output_extents(input_hw, list(w.shape[2:]), stride, padding), w.shape[0])
    if tuple(g.shape) != expected:
        raise ValueError(f"a gradient {tuple(g.shape)} is not that of an output {expected}")
    return g.new_empty((g.shape[0], *input_hw, w.shape[1]))


def compute(g: te.Tensor, w: te.Tensor, input_hw: list[int], stride: list[int], padding: list[int]) -> te.Tensor:
    """Sum over the outputs that read an image position, and their channels."""
    n, oh, ow, out_channels = (int(d) for d in g.shape)
    channels, kernel_h, kernel_w = (int(d) for d in w.shape[1:])
    kh, kw = te.reduce_axis((0, kernel_h), "kh"), te.reduce_axis((0, kernel_w), "kw")
    o = te.reduce_axis((0, out_channels), "o")

    def term(b: Any, y: Any, x: Any, i: Any) -> Any:
        inside, at_h, at_w = output_position(y, x, kh, kw, [oh, ow], stride, padding)
        product = g[b, at_h, at_w, o] * w[o, i, kh, kw]
        return te.sum(tirx.if_then_else(inside, product, tirx.const(0.0, "float32")), axis=[kh, kw, o])

    return te.compute((n, *input_hw, channels), term, name="conv2d_input_grad")


def cost(g: Tensor, w: Tensor, input_hw: list[int], stride: list[int], padding: list[int]) -> Cost:
    """Two operations a multiply-accumulate."""
    gx = fake(g, w, input_hw, stride, padding)
    return Cost(flops=2 * g.numel() * w[0].numel(), bytes_moved=tensor_bytes(g, w, gx))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """The geometries of ``conv2d``."""
    r = torch.Generator().manual_seed(0)
    for n, h, w, i, o, kernel, stride, padding in CONVOLUTION_SAMPLES:
        g = torch.randn(n, *output_extents([h, w], kernel, stride, padding), o, generator=r)
        yield g, torch.randn(o, i, *kernel, generator=r), [h, w], stride, padding


def onnx_attributes(g: Tensor, w: Tensor, input_hw: list[int], stride: list[int], padding: list[int]) -> Attributes:
    """Of a transposed convolution."""
    return transposed_convolution(input_hw, list(g.shape[1:3]), list(w.shape[2:]), stride, padding)


def transposed_convolution(
    input_hw: list[int], output_hw: list[int], kernel: list[int], stride: list[int], padding: list[int]
) -> Attributes:
    """Attributes of ``ConvTranspose``; ``output_padding`` are image rows and columns that no output reads."""
    axes = zip(input_hw, output_hw, kernel, stride, padding, strict=True)
    unread = [extent + 2 * pad - tap - (positions - 1) * step for extent, positions, tap, step, pad in axes]
    return {"kernel_shape": kernel, "strides": stride, "pads": [*padding, *padding], "output_padding": unread}


def conv_transpose(op: Body, g: str, w: str) -> str:
    """Transposed convolution of ``g`` [N, O, OH, OW] with ``w`` [O, I, KH, KW]; geometry in the attributes."""
    geometry = {name: ints(name) for name in ("kernel_shape", "strides", "pads", "output_padding")}
    return op("ConvTranspose", g, w, **geometry)


def onnx_body(op: Body, g: str, w: str) -> str:
    """A transposed convolution between two transpositions."""
    return op.channels_last(conv_transpose(op, op.channels_first(g), w))


conv2d_input_grad = OpSpec(
    "conv2d_input_grad",
    OpKind.PRODUCT,
    reference,
    fake,
    compute,
    cost,
    sample_inputs,
    tolerance=1e-4,
    onnx=OnnxFunction(onnx_body, onnx_attributes),
).register()
