"""``fqt::conv2d_weight_grad``: gradient of a convolution with respect to its weight, from channels-last tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight
from tvm import te, tirx

from fqt_deploy.ops.lib.convolution_shape import input_position, output_extents
from fqt_deploy.ops.lib.onnx_body import Attributes, Body, OnnxFunction, ints
from fqt_deploy.ops.products.conv2d import CONVOLUTION_SAMPLES
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(x: Tensor, g: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """Correlation of the input with the output gradient.

    Args:
        x: [N, H, W, I] float32.
        g: [N, OH, OW, O] float32.
        kernel: KH, KW.
        stride: vertical and horizontal.
        padding: zeros above and below, left and right of the input.

    Returns:
        [O, I, KH, KW] float32.
    """
    size = (g.shape[3], x.shape[3], *kernel)
    gw: Tensor = conv2d_weight(x.permute(0, 3, 1, 2), size, g.permute(0, 3, 1, 2), stride, padding)  # type: ignore[no-untyped-call]
    return gw.clone(memory_format=torch.contiguous_format)


def fake(x: Tensor, g: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """Shape rule of ``reference``."""
    n, h, w, i = x.shape
    expected = (n, *output_extents([h, w], kernel, stride, padding))
    if tuple(g.shape[:3]) != expected:
        raise ValueError(f"a gradient {tuple(g.shape)} is not that of an output {expected}")
    return x.new_empty((g.shape[3], i, *kernel))


def compute(x: te.Tensor, g: te.Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> te.Tensor:
    """Sum over samples and output positions."""
    _, h, w, channels = (int(d) for d in x.shape)
    n, oh, ow, out_channels = (int(d) for d in g.shape)
    b, y, z = te.reduce_axis((0, n), "n"), te.reduce_axis((0, oh), "oh"), te.reduce_axis((0, ow), "ow")

    def term(o: Any, i: Any, kh: Any, kw: Any) -> Any:
        inside, at_h, at_w = input_position(y, z, kh, kw, [h, w], stride, padding)
        product = x[b, at_h, at_w, i] * g[b, y, z, o]
        return te.sum(tirx.if_then_else(inside, product, tirx.const(0.0, "float32")), axis=[b, y, z])

    return te.compute((out_channels, channels, *kernel), term, name="conv2d_weight_grad")


def cost(x: Tensor, g: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Cost:
    """Two operations a multiply-accumulate."""
    gw = fake(x, g, kernel, stride, padding)
    return Cost(flops=2 * g.numel() * x.shape[3] * kernel[0] * kernel[1], bytes_moved=tensor_bytes(x, g, gw))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """The geometries of ``conv2d``."""
    r = torch.Generator().manual_seed(0)
    for n, h, w, i, o, kernel, stride, padding in CONVOLUTION_SAMPLES:
        g = torch.randn(n, *output_extents([h, w], kernel, stride, padding), o, generator=r)
        yield torch.randn(n, h, w, i, generator=r), g, kernel, stride, padding


def onnx_attributes(x: Tensor, g: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Attributes:
    """Of a convolution whose kernel is the gradient: its strides are dilations."""
    return {"kernel": kernel, "dilations": stride, "pads": [*padding, *padding]}


def onnx_body(op: Body, x: str, g: str) -> str:
    """A convolution over the batch; positions past the kernel come from image rows that no output reads."""
    images = op("Transpose", x, perm=[3, 0, 1, 2])
    gradients = op("Transpose", g, perm=[3, 0, 1, 2])
    taps = op("Conv", images, gradients, dilations=ints("dilations"), pads=ints("pads"))
    starts, axes = op.constant([0, 0], "int64"), op.constant([2, 3], "int64")
    return op("Transpose", op("Slice", taps, starts, op.integers("kernel"), axes), perm=[1, 0, 2, 3])


conv2d_weight_grad = OpSpec(
    "conv2d_weight_grad",
    OpKind.PRODUCT,
    reference,
    fake,
    compute,
    cost,
    sample_inputs,
    tolerance=1e-4,
    onnx=OnnxFunction(onnx_body, onnx_attributes),
).register()
