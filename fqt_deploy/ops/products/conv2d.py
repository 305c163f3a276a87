"""``fqt::conv2d``: floating point convolution on channels-last tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.convolution_shape import input_position, output_extents
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Attributes, Body, ints
from fqt_deploy.ops.lib.plain_convolution import plain_convolution
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.traits import ANY_SIGN, Layout, Nan, leads, zero_with_any

CONVOLUTION_SAMPLES = (
    (2, 6, 5, 8, 16, [3, 3], [1, 1], [1, 1]),
    (3, 7, 7, 5, 7, [3, 3], [2, 2], [1, 1]),
    (1, 4, 4, 16, 32, [1, 1], [2, 2], [0, 0]),
    (1, 1, 9, 7, 10, [1, 1], [1, 1], [0, 0]),
    (2, 2, 2, 3, 16, [3, 3], [1, 1], [1, 1]),
    (2, 9, 8, 4, 20, [5, 3], [1, 2], [2, 1]),
    (2, 8, 8, 3, 6, [3, 3], [3, 3], [0, 0]),
)
"""Geometries of convolutions, N, H, W, I, O, kernel, stride, padding: batch of one, a linear layer, odd channels, a
kernel wider than the image, a rectangular kernel, image rows that no output reads.
"""


@define(
    kind=Kind.PRODUCT, batch=leads("x"), zero=zero_with_any("x"), sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE
)
class Conv2d(FqtOp):
    """Convolution with zero padding.

    Attributes:
        x: [N, H, W, I] float32.
        w: [O, I, KH, KW] float32.
        stride: vertical and horizontal.
        padding: zeros above and below, left and right.

    Returns:
        [N, OH, OW, O] float32.
    """

    x: Operand
    w: Operand
    stride: list[int]
    padding: list[int]

    tolerance = 1e-4

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        y = plain_convolution(self.x.permute(0, 3, 1, 2), self.w, self.stride, self.padding)
        return y.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)

    def fake(self) -> Tensor:
        """Shape rule of ``reference``."""
        n, h, width, i = self.x.shape
        if self.w.dim() != 4 or self.w.shape[1] != i:
            raise ValueError(f"a weight {tuple(self.w.shape)} does not fit an input {tuple(self.x.shape)}")
        return self.x.new_empty(
            (n, *output_extents([h, width], list(self.w.shape[2:]), self.stride, self.padding), self.w.shape[0])
        )

    def compute(self) -> te.Tensor:
        """The loop nest: sum over taps and input channels."""
        n, h, width, channels = (int(d) for d in self.x.shape)
        out_channels, _, *kernel = (int(d) for d in self.w.shape)
        oh, ow = output_extents([h, width], kernel, self.stride, self.padding)
        kh, kw = te.reduce_axis((0, kernel[0]), "kh"), te.reduce_axis((0, kernel[1]), "kw")
        i = te.reduce_axis((0, channels), "i")

        def term(b: Any, y: Any, z: Any, o: Any) -> Any:
            inside, at_h, at_w = input_position(y, z, kh, kw, [h, width], self.stride, self.padding)
            product = self.x[b, at_h, at_w, i] * self.w[o, i, kh, kw]
            return te.sum(tirx.if_then_else(inside, product, tirx.const(0.0, "float32")), axis=[kh, kw, i])

        return te.compute((n, oh, ow, out_channels), term, name="conv2d")

    def cost(self) -> Cost:
        """The cost: two operations a multiply-accumulate."""
        y = self.fake()
        return Cost(flops=2 * y.numel() * self.w[0].numel(), bytes_moved=tensor_bytes(self.x, self.w, y))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: the geometries of ``CONVOLUTION_SAMPLES``."""
        g = torch.Generator().manual_seed(0)
        for n, h, w, i, o, kernel, stride, padding in CONVOLUTION_SAMPLES:
            yield torch.randn(n, h, w, i, generator=g), torch.randn(o, i, *kernel, generator=g), stride, padding

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: a convolution between two transpositions."""
        geometry = {name: ints(name) for name in ("kernel_shape", "strides", "pads")}
        return op.channels_last(op("Conv", op.channels_first(self.x), self.w, **geometry))

    def onnx_attributes(self) -> Attributes:
        """The attributes of a convolution in ONNX."""
        return {"kernel_shape": list(self.w.shape[2:]), "strides": self.stride, "pads": [*self.padding, *self.padding]}
