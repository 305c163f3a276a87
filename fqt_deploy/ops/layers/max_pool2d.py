"""``fqt::max_pool2d`` and ``fqt::max_pool2d_argmax``: pooling over windows, channels last."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Attributes, Body, ints
from fqt_deploy.ops.lib.pooling_window import nearest_taps, pooled_extent
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, keeps_sign, leads, zero_with_any


def _output_shape(x: te.Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> tuple[int, ...]:
    n, h, w, c = (int(d) for d in x.shape)
    return (n, *(pooled_extent(*a) for a in zip((h, w), kernel, stride, padding, strict=True)), c)


def _geometry() -> dict[str, Any]:
    return {name: ints(name) for name in ("kernel_shape", "strides", "pads")}


@define(
    kind=Kind.ELEMENTWISE,
    batch=leads("x"),
    zero=zero_with_any("x"),
    sign=keeps_sign("x"),
    nan=Nan.KEPT,
    layout=Layout.OPAQUE,
)
class MaxPool2d(FqtOp):
    """Largest element of every window.

    Attributes:
        x: [N, H, W, C] float32.
        kernel: window height and width.
        stride: step of the window.
        padding: rows and columns of minus infinity on either side.

    Returns:
        [N, OH, OW, C] float32.
    """

    x: Operand
    kernel: list[int]
    stride: list[int]
    padding: list[int]

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        y = F.max_pool2d(self.x.permute(0, 3, 1, 2), self.kernel, self.stride, self.padding)
        return y.permute(0, 2, 3, 1).contiguous()

    def fake(self) -> Tensor:
        """Shape rule: [N, H, W, C] -> [N, OH, OW, C]."""
        n, h, w, c = self.x.shape
        return self.x.new_empty(
            (n, *(pooled_extent(*a) for a in zip((h, w), self.kernel, self.stride, self.padding, strict=True)), c)
        )

    def window_size(self) -> int:
        """Returns the number of elements of a window."""
        return self.kernel[0] * self.kernel[1]

    def mentions(self) -> int:
        """Returns three for each tap: a test for NaN compares it with itself."""
        return 3 * self.window_size()

    def compute(self) -> te.Tensor:
        """Maximum over the taps, written out: the op stays element-wise for fusion."""

        def largest(*index: Any) -> Any:
            taps = nearest_taps(self.x, index, self.kernel, self.stride, self.padding)
            return reduce(tirx.max, (tap for tap, _ in taps))

        return te.compute(_output_shape(self.x, self.kernel, self.stride, self.padding), largest, name="max_pool2d")

    def cost(self) -> Cost:
        """Returns one comparison for each tap of each window."""
        y = self.fake()
        return Cost(flops=self.kernel[0] * self.kernel[1] * y.numel(), bytes_moved=tensor_bytes(self.x, y))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """Disjoint windows, overlapping padded ones, ties."""
        g = torch.Generator().manual_seed(0)
        yield torch.randn(2, 6, 6, 16, generator=g), [2, 2], [2, 2], [0, 0]
        yield torch.randn(2, 7, 5, 3, generator=g), [3, 3], [2, 2], [1, 1]
        yield torch.zeros(1, 4, 4, 8), [2, 2], [2, 2], [0, 0]
        ties = torch.tensor([-2.0, -1.0, 2.0])
        yield ties[torch.randint(3, (2, 6, 5, 16), generator=g)], [5, 2], [2, 1], [2, 1]
        yield ties[torch.randint(3, (2, 1, 2, 3), generator=g)], [3, 3], [1, 1], [1, 1]
        special = torch.tensor([math.nan, math.inf, -1.0, -2.0, 0.0, 1.0])
        yield special[torch.randint(6, (2, 7, 8, 16), generator=g)], [2, 2], [2, 2], [0, 0]
        yield special[torch.randint(6, (2, 7, 5, 16), generator=g)], [3, 3], [2, 2], [1, 1]

    def onnx_body(self, op: Body) -> str:
        """Pooling between two transpositions; ONNX Runtime's passes over NaN, so its place is pooled, too."""
        x = op.channels_first(self.x)
        is_nan = op("MaxPool", op.cast(op("IsNaN", x), "float32"), **_geometry())
        has_nan = op("Greater", is_nan, op.constant(0.0, "float32"))
        largest = op("MaxPool", x, **_geometry())
        return op.channels_last(op("Where", has_nan, op.constant(math.nan, "float32"), largest))

    def onnx_attributes(self) -> Attributes:
        """Returns the attributes of an ONNX pooling op."""
        return {"kernel_shape": self.kernel, "strides": self.stride, "pads": [*self.padding, *self.padding]}


@define(kind=Kind.ELEMENTWISE, batch=leads("x"), zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class MaxPool2dArgmax(FqtOp):
    """Position inside its window of every maximum: the first one on ties, any if there is NaN.

    Attributes:
        x: [N, H, W, C] float32.
        kernel: window height and width; at most 127 positions.
        stride: step of the window.
        padding: rows and columns of minus infinity on either side.

    Returns:
        [N, OH, OW, C] int8, ``row * kernel[1] + column``.
    """

    x: Operand
    kernel: list[int]
    stride: list[int]
    padding: list[int]

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        image = self.x.permute(0, 3, 1, 2)
        _, place = F.max_pool2d(image, self.kernel, self.stride, self.padding, return_indices=True)
        (oh, ow), width = place.shape[2:], self.x.shape[2]
        row = place // width - (torch.arange(oh) * self.stride[0] - self.padding[0]).view(-1, 1)
        column = place % width - (torch.arange(ow) * self.stride[1] - self.padding[1])
        return (row * self.kernel[1] + column).to(torch.int8).permute(0, 2, 3, 1).contiguous()

    def fake(self) -> Tensor:
        """Shape rule: as ``max_pool2d``, int8."""
        if self.kernel[0] * self.kernel[1] > 127:
            raise ValueError(f"a {self.kernel[0]}x{self.kernel[1]} window has more than 127 positions")
        return torch.empty_like(MaxPool2d(self.x, self.kernel, self.stride, self.padding).fake(), dtype=torch.int8)

    def window_size(self) -> int:
        """Returns the number of elements of a window."""
        return self.kernel[0] * self.kernel[1]

    def mentions(self) -> int:
        """Returns one for each tap in each maximum that it is a part of, and one for each of the two comparisons."""

        def count(taps: int) -> int:
            return 0 if taps == 1 else taps + count(taps // 2) + count(taps - taps // 2)

        return max(1, count(self.window_size()))

    def compute(self) -> te.Tensor:
        """The maximum and its position among each half of the taps, written out: the earlier one wins a tie."""

        def larger(taps: list[tuple[Any, Any]]) -> tuple[Any, Any]:
            if len(taps) == 1:
                return taps[0]
            half = len(taps) // 2
            (first, at), (second, later) = larger(taps[:half]), larger(taps[half:])
            return tirx.max(first, second), tirx.Select(second > first, later, at)

        def position(*index: Any) -> Any:
            return larger(nearest_taps(self.x, index, self.kernel, self.stride, self.padding))[1]

        return te.compute(
            _output_shape(self.x, self.kernel, self.stride, self.padding), position, name="max_pool2d_argmax"
        )

    cost = MaxPool2d.cost

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """Those of the maximum without NaN, whose position ONNX Runtime does not tell."""
        yield from (sample for sample in MaxPool2d.sample_inputs() if sample[0].isfinite().all())

    def onnx_body(self, op: Body) -> str:
        """From positions in the whole tensor to positions in the window."""
        _, index = op.several("MaxPool", op.channels_first(self.x), outputs=2, **_geometry())
        index = op.channels_last(index)
        image = op("Shape", self.x, start=1, end=3)
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

    onnx_attributes = MaxPool2d.onnx_attributes
