"""``fqt::max_pool2d`` and ``fqt::max_pool2d_argmax``: pooling over windows, channels last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops.lib.onnx_body import Attributes, Body, OnnxFunction, ints
from fqt_deploy.ops.lib.pooling_window import pooled_extent, window_taps
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes

LOWEST = -3.4028234663852886e38


def reference(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """Largest element of every window.

    Args:
        x: [N, H, W, C] float32.
        kernel: window height and width.
        stride: step of the window.
        padding: rows and columns of minus infinity on either side.

    Returns:
        [N, OH, OW, C] float32.
    """
    y = F.max_pool2d(x.permute(0, 3, 1, 2), kernel, stride, padding)
    return y.permute(0, 2, 3, 1).contiguous()


def argmax_reference(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """Position inside its window of every maximum, the first one on ties.

    Args:
        x: [N, H, W, C] float32.
        kernel: window height and width; at most 127 positions.
        stride: step of the window.
        padding: rows and columns of minus infinity on either side.

    Returns:
        [N, OH, OW, C] int8, ``row * kernel[1] + column``.
    """
    padded = F.pad(x, (0, 0, padding[1], padding[1], padding[0], padding[0]), value=LOWEST)
    windows = padded.unfold(1, kernel[0], stride[0]).unfold(2, kernel[1], stride[1])
    return windows.flatten(-2).argmax(-1).to(torch.int8)


def fake(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """Shape rule: [N, H, W, C] -> [N, OH, OW, C]."""
    n, h, w, c = x.shape
    return x.new_empty((n, *(pooled_extent(*a) for a in zip((h, w), kernel, stride, padding, strict=True)), c))


def argmax_fake(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """Shape rule: as ``max_pool2d``, int8."""
    if kernel[0] * kernel[1] > 127:
        raise ValueError(f"a {kernel[0]}x{kernel[1]} window has more than 127 positions")
    return torch.empty_like(fake(x, kernel, stride, padding), dtype=torch.int8)


def compute(x: te.Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> te.Tensor:
    """Maximum over the taps, written out: the op stays element-wise for fusion."""

    def largest(*index: Any) -> Any:
        taps = window_taps(x, index, kernel, stride, padding, outside=LOWEST)
        best = taps[0]
        for tap in taps[1:]:
            best = tirx.max(best, tap)
        return best

    return te.compute(_output_shape(x, kernel, stride, padding), largest, name="max_pool2d")


def argmax_compute(x: te.Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> te.Tensor:
    """Running maximum and its position, written out."""

    def position(*index: Any) -> Any:
        taps = window_taps(x, index, kernel, stride, padding, outside=LOWEST)
        best, where = taps[0], tirx.const(0, "int8")
        for i, tap in enumerate(taps[1:], start=1):
            where = tirx.Select(tap > best, tirx.const(i, "int8"), where)
            best = tirx.max(best, tap)
        return where

    return te.compute(_output_shape(x, kernel, stride, padding), position, name="max_pool2d_argmax")


def _output_shape(x: te.Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> tuple[int, ...]:
    n, h, w, c = (int(d) for d in x.shape)
    return (n, *(pooled_extent(*a) for a in zip((h, w), kernel, stride, padding, strict=True)), c)


def cost(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Cost:
    """One comparison a tap."""
    y = fake(x, kernel, stride, padding)
    return Cost(flops=kernel[0] * kernel[1] * y.numel(), bytes_moved=tensor_bytes(x, y))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Disjoint windows, overlapping padded ones, ties."""
    g = torch.Generator().manual_seed(0)
    yield torch.randn(2, 6, 6, 16, generator=g), [2, 2], [2, 2], [0, 0]
    yield torch.randn(2, 7, 5, 3, generator=g), [3, 3], [2, 2], [1, 1]
    yield torch.zeros(1, 4, 4, 8), [2, 2], [2, 2], [0, 0]


def onnx_attributes(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Attributes:
    """Of a pooling op."""
    return {"kernel_shape": kernel, "strides": stride, "pads": [*padding, *padding]}


def onnx_body(op: Body, x: str) -> str:
    """Pooling between two transpositions."""
    return op.channels_last(op("MaxPool", op.channels_first(x), **_geometry()))


def argmax_onnx_body(op: Body, x: str) -> str:
    """From positions in the whole tensor to positions in the window."""
    _, index = op.several("MaxPool", op.channels_first(x), outputs=2, **_geometry())
    index = op.channels_last(index)
    image = op("Shape", x, start=1, end=3)
    kernel, stride, pads = op.integers("kernel_shape"), op.integers("strides"), op.integers("pads")
    place = op("Mod", index, op("ReduceProd", image, op.constant([0], "int64")))
    width = op("Gather", image, op.constant(1, "int64"))
    inside = []
    for axis, at in enumerate((op("Div", place, width), op("Mod", place, width))):
        one = op.constant([axis], "int64")
        windows = op.reshape(op.range(op.extent(index, axis + 1)), *([-1, 1, 1] if axis == 0 else [-1, 1]))
        first = op("Sub", op("Mul", windows, op("Gather", stride, one)), op("Gather", pads, one))
        inside.append(op("Sub", at, first))
    columns = op("Gather", kernel, op.constant(1, "int64"))
    return op.cast(op("Add", op("Mul", inside[0], columns), inside[1]), "int8")


def _geometry() -> dict[str, Any]:
    return {name: ints(name) for name in ("kernel_shape", "strides", "pads")}


max_pool2d = OpSpec(
    "max_pool2d",
    OpKind.ELEMENTWISE,
    reference,
    fake,
    compute,
    cost,
    sample_inputs,
    onnx=OnnxFunction(onnx_body, onnx_attributes),
).register()
max_pool2d_argmax = OpSpec(
    "max_pool2d_argmax",
    OpKind.ELEMENTWISE,
    argmax_reference,
    argmax_fake,
    argmax_compute,
    cost,
    sample_inputs,
    onnx=OnnxFunction(argmax_onnx_body, onnx_attributes),
).register()
