"""``fqt::avg_pool2d`` and its backward: mean over windows, channels last, padding counted as zeros."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Attributes, Body, ints
from fqt_deploy.ops.lib.pooling_window import covering_count, covering_windows, pooled_extent, window_taps
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.products.conv2d_input_grad import conv_transpose, transposed_convolution
from fqt_deploy.ops.traits import ANY_SIGN, Layout, Nan, keeps_sign, leads, zero_with_any


@define(
    kind=Kind.ELEMENTWISE,
    batch=leads("x"),
    zero=zero_with_any("x"),
    sign=keeps_sign("x"),
    nan=Nan.KEPT,
    layout=Layout.OPAQUE,
)
class AvgPool2d(FqtOp):
    """Mean of every window.

    Attributes:
        x: [N, H, W, C] float32.
        kernel: window height and width.
        stride: step of the window.
        padding: rows and columns of zeros on either side; they count.

    Returns:
        [N, OH, OW, C] float32.
    """

    x: Operand
    kernel: list[int]
    stride: list[int]
    padding: list[int]

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        return (
            F.avg_pool2d(self.x.permute(0, 3, 1, 2), self.kernel, self.stride, self.padding)
            .permute(0, 2, 3, 1)
            .contiguous()
        )

    def fake(self) -> Tensor:
        """Shape rule: [N, H, W, C] -> [N, OH, OW, C]."""
        n, h, w, c = self.x.shape
        return self.x.new_empty(
            (n, *(pooled_extent(*a) for a in zip((h, w), self.kernel, self.stride, self.padding, strict=True)), c)
        )

    def window_size(self) -> int:
        """Returns the number of elements of a window."""
        return self.kernel[0] * self.kernel[1]

    def compute(self) -> te.Tensor:
        """Sum of the taps, written out, times the reciprocal of the window size."""
        n, h, w, c = (int(d) for d in self.x.shape)
        extents = [pooled_extent(*a) for a in zip((h, w), self.kernel, self.stride, self.padding, strict=True)]

        def mean(*index: Any) -> Any:
            total, *rest = window_taps(self.x, index, self.kernel, self.stride, self.padding, outside=0.0)
            for tap in rest:
                total = total + tap
            return total / float(self.kernel[0] * self.kernel[1])

        return te.compute((n, *extents, c), mean, name="avg_pool2d")

    def cost(self) -> Cost:
        """Returns one addition for each tap of each window."""
        y = self.fake()
        return Cost(flops=self.kernel[0] * self.kernel[1] * y.numel(), bytes_moved=tensor_bytes(self.x, y))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """Disjoint windows and overlapping padded ones."""
        g = torch.Generator().manual_seed(0)
        yield torch.randn(2, 6, 6, 16, generator=g), [2, 2], [2, 2], [0, 0]
        yield torch.randn(2, 7, 5, 3, generator=g), [3, 3], [2, 2], [1, 1]

    def onnx_body(self, op: Body) -> str:
        """Writes the pooling between two transpositions, because ONNX has channels first."""
        geometry = {name: ints(name) for name in ("kernel_shape", "strides", "pads")}
        return op.channels_last(op("AveragePool", op.channels_first(self.x), count_include_pad=1, **geometry))

    def onnx_attributes(self) -> Attributes:
        """Returns the attributes of an ONNX pooling op."""
        return {"kernel_shape": self.kernel, "strides": self.stride, "pads": [*self.padding, *self.padding]}


@define(
    kind=Kind.ELEMENTWISE,
    batch=leads("gradient"),
    zero=zero_with_any("gradient"),
    sign=ANY_SIGN,
    nan=Nan.UNKNOWN,
    layout=Layout.OPAQUE,
)
class AvgPool2dBackward(FqtOp):
    """Spread each window's gradient evenly over its elements.

    Attributes:
        gradient: [N, OH, OW, C] float32.
        input_hw: H and W of the pooled image.
        kernel: window height and width.
        stride: step of the window.
        padding: as in forward.

    Returns:
        [N, H, W, C] float32.
    """

    gradient: Operand
    input_hw: list[int]
    kernel: list[int]
    stride: list[int]
    padding: list[int]

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        n, _, _, c = self.gradient.shape
        x = self.gradient.new_zeros((n, c, *self.input_hw))
        spread = torch.ops.aten.avg_pool2d_backward(
            self.gradient.permute(0, 3, 1, 2).contiguous(), x, self.kernel, self.stride, self.padding, False, True, None
        )
        result: Tensor = spread.permute(0, 2, 3, 1).contiguous()
        return result

    def fake(self) -> Tensor:
        """Shape rule: [N, OH, OW, C] -> [N, *input_hw, C]."""
        return self.gradient.new_empty((self.gradient.shape[0], *self.input_hw, self.gradient.shape[3]))

    def window_size(self) -> int:
        """Returns the upper bound of the number of windows that hold one element."""
        return covering_count(self.kernel, self.stride)

    def compute(self) -> te.Tensor:
        """Gather form: each input position sums the windows that cover it."""
        n, oh, ow, c = (int(d) for d in self.gradient.shape)

        def gathered(i: Any, h: Any, w: Any, j: Any) -> Any:
            total = tirx.const(0.0, "float32")
            for condition, a, b, _ in covering_windows(h, w, (oh, ow), self.kernel, self.stride, self.padding):
                total = total + tirx.if_then_else(condition, self.gradient[i, a, b, j], tirx.const(0.0, "float32"))
            return total / float(self.kernel[0] * self.kernel[1])

        return te.compute((n, *self.input_hw, c), gathered, name="avg_pool2d_backward")

    def cost(self) -> Cost:
        """About one addition an input element."""
        output = self.gradient.shape[0] * self.gradient.shape[3] * self.input_hw[0] * self.input_hw[1]
        return Cost(flops=2 * output, bytes_moved=tensor_bytes(self.gradient) + 4 * output)

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The windows of the forward samples."""
        for x, kernel, stride, padding in AvgPool2d.sample_inputs():
            yield AvgPool2d(x, kernel, stride, padding).reference(), list(x.shape[1:3]), kernel, stride, padding

    def onnx_body(self, op: Body) -> str:
        """A transposed convolution of every channel with a constant kernel."""
        kernel = op.integers("kernel_shape")
        count = op.cast(op("ReduceProd", kernel, op.constant([0], "int64"), keepdims=0), "float32")
        one = op("Expand", op("Reciprocal", count), op.shape(1, 1, kernel))
        images = op.channels_first(self.gradient)
        planes = op.reshape(images, op.shape(-1, 1), op("Shape", images, start=2))
        spread = conv_transpose(op, planes, one)
        return op.channels_last(op.reshape(spread, op("Shape", images, end=2), op("Shape", spread, start=2)))

    def onnx_attributes(self) -> Attributes:
        """Returns the attributes of an ONNX transposed convolution."""
        return transposed_convolution(
            self.input_hw, list(self.gradient.shape[1:3]), self.kernel, self.stride, self.padding
        )
