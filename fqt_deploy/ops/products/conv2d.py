"""``fqt::conv2d``: floating point convolution on channels-last tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops.lib.convolution_shape import input_position, output_extents
from fqt_deploy.ops.lib.onnx_body import Attributes, Body, OnnxFunction, ints
from fqt_deploy.ops.lib.plain_convolution import plain_convolution
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes

CONVOLUTION_SAMPLES = (
    (2, 6, 5, 8, 16, [3, 3], [1, 1], [1, 1]),
    (3, 7, 7, 5, 7, [3, 3], [2, 2], [1, 1]),
    (1, 4, 4, 16, 32, [1, 1], [2, 2], [0, 0]),
    (1, 1, 9, 7, 10, [1, 1], [1, 1], [0, 0]),
    (2, 2, 2, 3, 16, [3, 3], [1, 1], [1, 1]),
    (2, 9, 8, 4, 20, [5, 3], [1, 2], [2, 1]),
    (2, 8, 8, 3, 6, [3, 3], [3, 3], [0, 0]),
)
"""N, H, W, I, O, kernel, stride, padding: batch of one, a linear layer, odd channels, a kernel wider than the image, a
rectangular kernel, image rows that no output reads."""


def reference(x: Tensor, w: Tensor, stride: list[int], padding: list[int]) -> Tensor:
    """Convolution with zero padding.

    Args:
        x: [N, H, W, I] float32.
        w: [O, I, KH, KW] float32.
        stride: vertical and horizontal.
        padding: zeros above and below, left and right.

    Returns:
        [N, OH, OW, O] float32.
    """
    y = plain_convolution(x.permute(0, 3, 1, 2), w, stride, padding)
    return y.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)


def fake(x: Tensor, w: Tensor, stride: list[int], padding: list[int]) -> Tensor:
    """Shape rule of ``reference``."""
    n, h, width, i = x.shape
    if w.dim() != 4 or w.shape[1] != i:
        raise ValueError(f"a weight {tuple(w.shape)} does not fit an input {tuple(x.shape)}")
    return x.new_empty((n, *output_extents([h, width], list(w.shape[2:]), stride, padding), w.shape[0]))


def compute(x: te.Tensor, w: te.Tensor, stride: list[int], padding: list[int]) -> te.Tensor:
    """Sum over taps and input channels."""
    n, h, width, channels = (int(d) for d in x.shape)
    out_channels, _, *kernel = (int(d) for d in w.shape)
    oh, ow = output_extents([h, width], kernel, stride, padding)
    kh, kw = te.reduce_axis((0, kernel[0]), "kh"), te.reduce_axis((0, kernel[1]), "kw")
    i = te.reduce_axis((0, channels), "i")

    def term(b: Any, y: Any, z: Any, o: Any) -> Any:
        inside, at_h, at_w = input_position(y, z, kh, kw, [h, width], stride, padding)
        product = x[b, at_h, at_w, i] * w[o, i, kh, kw]
        return te.sum(tirx.if_then_else(inside, product, tirx.const(0.0, "float32")), axis=[kh, kw, i])

    return te.compute((n, oh, ow, out_channels), term, name="conv2d")


def cost(x: Tensor, w: Tensor, stride: list[int], padding: list[int]) -> Cost:
    """Two operations a multiply-accumulate."""
    y = fake(x, w, stride, padding)
    return Cost(flops=2 * y.numel() * w[0].numel(), bytes_moved=tensor_bytes(x, w, y))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """See ``CONVOLUTION_SAMPLES``."""
    g = torch.Generator().manual_seed(0)
    for n, h, w, i, o, kernel, stride, padding in CONVOLUTION_SAMPLES:
        yield torch.randn(n, h, w, i, generator=g), torch.randn(o, i, *kernel, generator=g), stride, padding


def onnx_attributes(x: Tensor, w: Tensor, stride: list[int], padding: list[int]) -> Attributes:
    """Of a convolution."""
    return {"kernel_shape": list(w.shape[2:]), "strides": stride, "pads": [*padding, *padding]}


def onnx_body(op: Body, x: str, w: str) -> str:
    """A convolution between two transpositions."""
    geometry = {name: ints(name) for name in ("kernel_shape", "strides", "pads")}
    return op.channels_last(op("Conv", op.channels_first(x), w, **geometry))


conv2d = OpSpec(
    "conv2d",
    OpKind.PRODUCT,
    reference,
    fake,
    compute,
    cost,
    sample_inputs,
    tolerance=1e-4,
    onnx=OnnxFunction(onnx_body, onnx_attributes),
).register()
