"""``fqt::avg_pool2d`` and its backward: mean over windows, channels last, padding counted as zeros."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops.lib.onnx_body import Attributes, Body, OnnxFunction, ints
from fqt_deploy.ops.lib.pooling_window import covering_windows, pooled_extent, window_taps
from fqt_deploy.ops.products.conv2d_input_grad import conv_transpose, transposed_convolution
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """Mean of every window.

    Args:
        x: [N, H, W, C] float32.
        kernel: window height and width.
        stride: step of the window.
        padding: rows and columns of zeros on either side; they count.

    Returns:
        [N, OH, OW, C] float32.
    """
    return F.avg_pool2d(x.permute(0, 3, 1, 2), kernel, stride, padding).permute(0, 2, 3, 1).contiguous()


def backward_reference(
    gradient: Tensor, input_hw: list[int], kernel: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    """Spread each window's gradient evenly over its elements.

    Args:
        gradient: [N, OH, OW, C] float32.
        input_hw: H and W of the pooled image.
        kernel: window height and width.
        stride: step of the window.
        padding: as in forward.

    Returns:
        [N, H, W, C] float32.
    """
    n, _, _, c = gradient.shape
    x = gradient.new_zeros((n, c, *input_hw))
    spread = torch.ops.aten.avg_pool2d_backward(
        gradient.permute(0, 3, 1, 2).contiguous(), x, kernel, stride, padding, False, True, None
    )
    result: Tensor = spread.permute(0, 2, 3, 1).contiguous()
    return result


def fake(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """Shape rule: [N, H, W, C] -> [N, OH, OW, C]."""
    n, h, w, c = x.shape
    return x.new_empty((n, *(pooled_extent(*a) for a in zip((h, w), kernel, stride, padding, strict=True)), c))


def backward_fake(
    gradient: Tensor, input_hw: list[int], kernel: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    """Shape rule: [N, OH, OW, C] -> [N, *input_hw, C]."""
    return gradient.new_empty((gradient.shape[0], *input_hw, gradient.shape[3]))


def compute(x: te.Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> te.Tensor:
    """Sum of the taps, written out, times the reciprocal of the window size."""
    n, h, w, c = (int(d) for d in x.shape)
    extents = [pooled_extent(*a) for a in zip((h, w), kernel, stride, padding, strict=True)]

    def mean(*index: Any) -> Any:
        total, *rest = window_taps(x, index, kernel, stride, padding, outside=0.0)
        for tap in rest:
            total = total + tap
        return total / float(kernel[0] * kernel[1])

    return te.compute((n, *extents, c), mean, name="avg_pool2d")


def backward_compute(
    gradient: te.Tensor, input_hw: list[int], kernel: list[int], stride: list[int], padding: list[int]
) -> te.Tensor:
    """Gather form: each input position sums the windows that cover it."""
    n, oh, ow, c = (int(d) for d in gradient.shape)

    def gathered(i: Any, h: Any, w: Any, j: Any) -> Any:
        total = tirx.const(0.0, "float32")
        for condition, a, b, _ in covering_windows(h, w, (oh, ow), kernel, stride, padding):
            total = total + tirx.if_then_else(condition, gradient[i, a, b, j], tirx.const(0.0, "float32"))
        return total / float(kernel[0] * kernel[1])

    return te.compute((n, *input_hw, c), gathered, name="avg_pool2d_backward")


def cost(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Cost:
    """One addition a tap."""
    y = fake(x, kernel, stride, padding)
    return Cost(flops=kernel[0] * kernel[1] * y.numel(), bytes_moved=tensor_bytes(x, y))


def backward_cost(gradient: Tensor, input_hw: list[int], *_: Any) -> Cost:
    """About one addition an input element."""
    output = gradient.shape[0] * gradient.shape[3] * input_hw[0] * input_hw[1]
    return Cost(flops=2 * output, bytes_moved=tensor_bytes(gradient) + 4 * output)


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Disjoint windows and overlapping padded ones."""
    g = torch.Generator().manual_seed(0)
    yield torch.randn(2, 6, 6, 16, generator=g), [2, 2], [2, 2], [0, 0]
    yield torch.randn(2, 7, 5, 3, generator=g), [3, 3], [2, 2], [1, 1]


def backward_sample_inputs() -> Iterator[tuple[Any, ...]]:
    """The windows of the forward samples."""
    for x, kernel, stride, padding in sample_inputs():
        yield reference(x, kernel, stride, padding), list(x.shape[1:3]), kernel, stride, padding


def onnx_attributes(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Attributes:
    """Of a pooling op."""
    return {"kernel_shape": kernel, "strides": stride, "pads": [*padding, *padding]}


def backward_onnx_attributes(
    gradient: Tensor, input_hw: list[int], kernel: list[int], stride: list[int], padding: list[int]
) -> Attributes:
    """Of a transposed convolution."""
    return transposed_convolution(input_hw, list(gradient.shape[1:3]), kernel, stride, padding)


def onnx_body(op: Body, x: str) -> str:
    """Pooling between two transpositions."""
    geometry = {name: ints(name) for name in ("kernel_shape", "strides", "pads")}
    return op.channels_last(op("AveragePool", op.channels_first(x), count_include_pad=1, **geometry))


def backward_onnx_body(op: Body, gradient: str) -> str:
    """A transposed convolution of every channel with a constant kernel."""
    kernel = op.integers("kernel_shape")
    count = op.cast(op("ReduceProd", kernel, op.constant([0], "int64"), keepdims=0), "float32")
    one = op("Expand", op("Reciprocal", count), op.shape(1, 1, kernel))
    images = op.channels_first(gradient)
    planes = op.reshape(images, op.shape(-1, 1), op("Shape", images, start=2))
    spread = conv_transpose(op, planes, one)
    return op.channels_last(op.reshape(spread, op("Shape", images, end=2), op("Shape", spread, start=2)))


avg_pool2d = OpSpec(
    "avg_pool2d",
    OpKind.ELEMENTWISE,
    reference,
    fake,
    compute,
    cost,
    sample_inputs,
    onnx=OnnxFunction(onnx_body, onnx_attributes),
).register()
avg_pool2d_backward = OpSpec(
    "avg_pool2d_backward",
    OpKind.ELEMENTWISE,
    backward_reference,
    backward_fake,
    backward_compute,
    backward_cost,
    backward_sample_inputs,
    onnx=OnnxFunction(backward_onnx_body, backward_onnx_attributes),
).register()
