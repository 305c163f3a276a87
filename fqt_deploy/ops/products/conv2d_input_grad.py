"""``fqt::conv2d_input_grad``: gradient of a convolution with respect to its input, channels last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input

from fqt_deploy.ops.lib.convolution_shape import output_extents, output_position
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Attributes, Body, ints
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.products.conv2d import CONVOLUTION_SAMPLES
from fqt_deploy.ops.traits import ANY_SIGN, Layout, Nan, leads, zero_with_any


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


@define(
    kind=Kind.PRODUCT, batch=leads("g"), zero=zero_with_any("g"), sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE
)
class Conv2dInputGrad(FqtOp):
    """Transposed convolution of the output gradient.

    Attributes:
        g: [N, OH, OW, O] float32.
        w: [O, I, KH, KW] float32.
        input_hw: H, W.
        stride: vertical and horizontal.
        padding: zeros above and below, left and right of the input.

    Returns:
        [N, H, W, I] float32.
    """

    g: Operand
    w: Operand
    input_hw: list[int]
    stride: list[int]
    padding: list[int]

    tolerance = 1e-4

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        size = (self.g.shape[0], self.w.shape[1], *self.input_hw)
        gx: Tensor = conv2d_input(size, self.w, self.g.permute(0, 3, 1, 2), self.stride, self.padding)  # type: ignore[no-untyped-call]
        return gx.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)

    def fake(self) -> Tensor:
        """Shape rule of ``reference``."""
        expected = (
            self.g.shape[0],
            *output_extents(self.input_hw, list(self.w.shape[2:]), self.stride, self.padding),
            self.w.shape[0],
        )
        if tuple(self.g.shape) != expected:
            raise ValueError(f"a gradient {tuple(self.g.shape)} is not that of an output {expected}")
        return self.g.new_empty((self.g.shape[0], *self.input_hw, self.w.shape[1]))

    def compute(self) -> te.Tensor:
        """The loop nest: sum over the outputs that read an image position, and their channels."""
        n, oh, ow, out_channels = (int(d) for d in self.g.shape)
        channels, kernel_h, kernel_w = (int(d) for d in self.w.shape[1:])
        kh, kw = te.reduce_axis((0, kernel_h), "kh"), te.reduce_axis((0, kernel_w), "kw")
        o = te.reduce_axis((0, out_channels), "o")

        def term(b: Any, y: Any, x: Any, i: Any) -> Any:
            inside, at_h, at_w = output_position(y, x, kh, kw, [oh, ow], self.stride, self.padding)
            product = self.g[b, at_h, at_w, o] * self.w[o, i, kh, kw]
            return te.sum(tirx.if_then_else(inside, product, tirx.const(0.0, "float32")), axis=[kh, kw, o])

        return te.compute((n, *self.input_hw, channels), term, name="conv2d_input_grad")

    def cost(self) -> Cost:
        """The cost: two operations a multiply-accumulate."""
        gx = self.fake()
        return Cost(flops=2 * self.g.numel() * self.w[0].numel(), bytes_moved=tensor_bytes(self.g, self.w, gx))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: the geometries of ``conv2d``."""
        r = torch.Generator().manual_seed(0)
        for n, h, w, i, o, kernel, stride, padding in CONVOLUTION_SAMPLES:
            g = torch.randn(n, *output_extents([h, w], kernel, stride, padding), o, generator=r)
            yield g, torch.randn(o, i, *kernel, generator=r), [h, w], stride, padding

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: a transposed convolution between two transpositions."""
        return op.channels_last(conv_transpose(op, op.channels_first(self.g), self.w))

    def onnx_attributes(self) -> Attributes:
        """The attributes of a transposed convolution in ONNX."""
        return transposed_convolution(
            self.input_hw, list(self.g.shape[1:3]), list(self.w.shape[2:]), self.stride, self.padding
        )
