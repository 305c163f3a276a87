"""``fqt::max_pool2d_backward``: hand each window's gradient to its maximum, channels last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fqt_deploy.ops.layers.max_pool2d import MaxPool2d, MaxPool2dArgmax
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.lib.pooling_window import covering_count, covering_windows
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.traits import ANY_SIGN, Layout, Nan, leads, zero_with_any


@define(
    kind=Kind.ELEMENTWISE,
    batch=leads("gradient", "argmax"),
    zero=zero_with_any("gradient"),
    sign=ANY_SIGN,
    nan=Nan.UNKNOWN,
    layout=Layout.OPAQUE,
)
class MaxPool2dBackward(FqtOp):
    """Scatter the gradient to the positions that ``max_pool2d_argmax`` recorded.

    Attributes:
        gradient: [N, OH, OW, C] float32.
        argmax: [N, OH, OW, C] int8, position inside the window.
        input_hw: H and W of the pooled image.
        kernel: window height and width.
        stride: step of the window.
        padding: as in forward.

    Returns:
        [N, H, W, C] float32.
    """

    gradient: Operand
    argmax: Operand
    input_hw: list[int]
    kernel: list[int]
    stride: list[int]
    padding: list[int]

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        n, oh, ow, c = self.gradient.shape
        h, w = self.input_hw[0] + 2 * self.padding[0], self.input_hw[1] + 2 * self.padding[1]
        rows = torch.arange(oh).view(1, oh, 1, 1) * self.stride[0] + self.argmax.long() // self.kernel[1]
        columns = torch.arange(ow).view(1, 1, ow, 1) * self.stride[1] + self.argmax.long() % self.kernel[1]
        flat = self.gradient.new_zeros(n, h * w, c)
        flat.scatter_add_(1, (rows * w + columns).view(n, oh * ow, c), self.gradient.reshape(n, oh * ow, c))
        full = flat.view(n, h, w, c)
        return full[:, self.padding[0] : h - self.padding[0], self.padding[1] : w - self.padding[1]].contiguous()

    def fake(self) -> Tensor:
        """Shape rule: [N, OH, OW, C] -> [N, *input_hw, C]."""
        if self.gradient.shape != self.argmax.shape:
            raise ValueError(
                f"gradient {tuple(self.gradient.shape)} and positions {tuple(self.argmax.shape)} differ in shape"
            )
        return self.gradient.new_empty((self.gradient.shape[0], *self.input_hw, self.gradient.shape[3]))

    def window_size(self) -> int:
        """Returns the upper bound of the number of windows that hold one element."""
        return covering_count(self.kernel, self.stride)

    def compute(self) -> te.Tensor:
        """Gather form: each input position asks the few windows that cover it."""
        n, oh, ow, c = (int(d) for d in self.gradient.shape)

        def gathered(i: Any, h: Any, w: Any, j: Any) -> Any:
            total = None
            zero = tirx.const(0.0, "float32")
            for condition, a, b, tap in covering_windows(h, w, (oh, ow), self.kernel, self.stride, self.padding):
                # in int32: outside the window the tap may be any number, and its bounds have to be representable
                is_largest = self.argmax[i, a, b, j].astype("int32") == tap
                chosen = tirx.if_then_else(condition, tirx.Select(is_largest, self.gradient[i, a, b, j], zero), zero)
                total = chosen if total is None else total + chosen
            return total

        return te.compute((n, *self.input_hw, c), gathered, name="max_pool2d_backward")

    def cost(self) -> Cost:
        """One comparison an input element."""
        output = self.gradient.shape[0] * self.gradient.shape[3] * self.input_hw[0] * self.input_hw[1]
        return Cost(flops=2 * output, bytes_moved=tensor_bytes(self.gradient, self.argmax) + 4 * output)

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The windows of ``max_pool2d``'s samples."""
        g = torch.Generator().manual_seed(1)
        for x, kernel, stride, padding in MaxPool2d.sample_inputs():
            y = F.max_pool2d(x.permute(0, 3, 1, 2), kernel, stride, padding).permute(0, 2, 3, 1)
            positions = MaxPool2dArgmax(x, kernel, stride, padding).reference()
            yield torch.randn(y.shape, generator=g), positions, list(x.shape[1:3]), kernel, stride, padding

    def onnx_body(self, op: Body) -> str:
        """Scatter each gradient to its position in the padded image, then cut the padding off."""
        kernel, stride, padding = op.integers("kernel"), op.integers("stride"), op.integers("padding")
        image = op("Add", op.integers("input_hw"), op("Mul", padding, op.constant([2], "int64")))
        position, columns = op.cast(self.argmax, "int64"), op("Gather", kernel, op.constant(1, "int64"))
        at = []
        for axis, tap in enumerate((op("Div", position, columns), op("Mod", position, columns))):
            windows = op.reshape(op.range(op.extent(self.gradient, axis + 1)), *([-1, 1, 1] if axis == 0 else [-1, 1]))
            at.append(op("Add", op("Mul", windows, op("Gather", stride, op.constant([axis], "int64"))), tap))
        place = op("Add", op("Mul", at[0], op("Gather", image, op.constant(1, "int64"))), at[1])
        samples, channels = op.extent(self.gradient, 0), op.extent(self.gradient, 3)
        pixels = op("ReduceProd", image, op.constant([0], "int64"))
        nothing = op("Expand", op.constant(0.0, "float32"), op.shape(samples, pixels, channels))
        rows = [op.reshape(value, samples, -1, channels) for value in (place, self.gradient)]
        flat = op("ScatterElements", nothing, *rows, axis=1, reduction="add")
        full = op.reshape(flat, samples, image, channels)
        end = op("Add", padding, op.integers("input_hw"))
        return op("Slice", full, padding, end, op.constant([1, 2], "int64"))
