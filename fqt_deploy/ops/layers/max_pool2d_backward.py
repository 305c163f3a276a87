"""``fqt::max_pool2d_backward``: hand each window's gradient to its maximum, channels last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops.layers import max_pool2d
from fqt_deploy.ops.lib.onnx_body import Body, OnnxFunction
from fqt_deploy.ops.lib.pooling_window import covering_windows
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(
    gradient: Tensor, argmax: Tensor, input_hw: list[int], kernel: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    """Scatter the gradient to the positions that ``max_pool2d_argmax`` recorded.

    Args:
        gradient: [N, OH, OW, C] float32.
        argmax: [N, OH, OW, C] int8, position inside the window.
        input_hw: H and W of the pooled image.
        kernel: window height and width.
        stride: step of the window.
        padding: as in forward.

    Returns:
        [N, H, W, C] float32.
    """
    n, oh, ow, c = gradient.shape
    h, w = input_hw[0] + 2 * padding[0], input_hw[1] + 2 * padding[1]
    rows = torch.arange(oh).view(1, oh, 1, 1) * stride[0] + argmax.long() // kernel[1]
    columns = torch.arange(ow).view(1, 1, ow, 1) * stride[1] + argmax.long() % kernel[1]
    flat = gradient.new_zeros(n, h * w, c)
    flat.scatter_add_(1, (rows * w + columns).view(n, oh * ow, c), gradient.reshape(n, oh * ow, c))
    full = flat.view(n, h, w, c)
    return full[:, padding[0] : h - padding[0], padding[1] : w - padding[1]].contiguous()


def fake(
    gradient: Tensor, argmax: Tensor, input_hw: list[int], kernel: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    """Shape rule: [N, OH, OW, C] -> [N, *input_hw, C]."""
    if gradient.shape != argmax.shape:
        raise ValueError(f"gradient {tuple(gradient.shape)} and positions {tuple(argmax.shape)} differ in shape")
    return gradient.new_empty((gradient.shape[0], *input_hw, gradient.shape[3]))


def compute(
    gradient: te.Tensor,
    argmax: te.Tensor,
    input_hw: list[int],
    kernel: list[int],
    stride: list[int],
    padding: list[int],
) -> te.Tensor:
    """Gather form: each input position asks the few windows that cover it."""
    n, oh, ow, c = (int(d) for d in gradient.shape)

    def gathered(i: Any, h: Any, w: Any, j: Any) -> Any:
        total = None
        zero = tirx.const(0.0, "float32")
        for condition, a, b, tap in covering_windows(h, w, (oh, ow), kernel, stride, padding):
            # in int32: outside the window the tap may be any number, and its bounds have to be representable
            is_largest = argmax[i, a, b, j].astype("int32") == tap
            chosen = tirx.if_then_else(condition, tirx.Select(is_largest, gradient[i, a, b, j], zero), zero)
            total = chosen if total is None else total + chosen
        return total

    return te.compute((n, *input_hw, c), gathered, name="max_pool2d_backward")


def cost(gradient: Tensor, argmax: Tensor, input_hw: list[int], *_: Any) -> Cost:
    """One comparison an input element."""
    output = gradient.shape[0] * gradient.shape[3] * input_hw[0] * input_hw[1]
    return Cost(flops=2 * output, bytes_moved=tensor_bytes(gradient, argmax) + 4 * output)


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """The windows of ``max_pool2d``'s samples."""
    g = torch.Generator().manual_seed(1)
    for x, kernel, stride, padding in max_pool2d.sample_inputs():
        y = F.max_pool2d(x.permute(0, 3, 1, 2), kernel, stride, padding).permute(0, 2, 3, 1)
        positions = max_pool2d.argmax_reference(x, kernel, stride, padding)
        yield torch.randn(y.shape, generator=g), positions, list(x.shape[1:3]), kernel, stride, padding


def onnx_body(op: Body, gradient: str, argmax: str) -> str:
    """Scatter each gradient to its position in the padded image, then cut the padding off."""
    kernel, stride, padding = op.integers("kernel"), op.integers("stride"), op.integers("padding")
    image = op("Add", op.integers("input_hw"), op("Mul", padding, op.constant([2], "int64")))
    position, columns = op.cast(argmax, "int64"), op("Gather", kernel, op.constant(1, "int64"))
    at = []
    for axis, tap in enumerate((op("Div", position, columns), op("Mod", position, columns))):
        windows = op.reshape(op.range(op.extent(gradient, axis + 1)), *([-1, 1, 1] if axis == 0 else [-1, 1]))
        at.append(op("Add", op("Mul", windows, op("Gather", stride, op.constant([axis], "int64"))), tap))
    place = op("Add", op("Mul", at[0], op("Gather", image, op.constant(1, "int64"))), at[1])
    samples, channels = op.extent(gradient, 0), op.extent(gradient, 3)
    pixels = op("ReduceProd", image, op.constant([0], "int64"))
    nothing = op("Expand", op.constant(0.0, "float32"), op.shape(samples, pixels, channels))
    rows = [op.reshape(value, samples, -1, channels) for value in (place, gradient)]
    flat = op("ScatterElements", nothing, *rows, axis=1, reduction="add")
    full = op.reshape(flat, samples, image, channels)
    end = op("Add", padding, op.integers("input_hw"))
    return op("Slice", full, padding, end, op.constant([1, 2], "int64"))


max_pool2d_backward = OpSpec(
    "max_pool2d_backward",
    OpKind.ELEMENTWISE,
    reference,
    fake,
    compute,
    cost,
    sample_inputs,
    onnx=OnnxFunction(onnx_body),
).register()
