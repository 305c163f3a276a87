"""``fqt::grouped_conv_input_grad``: gradient of ``grouped_conv`` by its input, which is a transposed convolution."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.convolution_axes import ConvolutionAxes, channels_first, channels_last
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Attributes, Body, integer, ints
from fqt_deploy.ops.lib.plain_convolution import without_onednn
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.products.grouped_conv import GROUPED_SAMPLES
from fqt_deploy.ops.traits import ANY_SIGN, Layout, Nan, leads, zero_with_any


@define(
    kind=Kind.PRODUCT, batch=leads("g"), zero=zero_with_any("g"), sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE
)
class GroupedConvInputGrad(FqtOp):
    """Transposed convolution of the output gradient, group by group.

    Attributes:
        g: [N, *outputs, O] float32.
        w: [O, I / groups, *kernel] float32.
        image: extents of the input's spatial axes.
        stride: one for each spatial axis, as the next two.
        padding: zeros on either side of the input.
        dilation: positions from one tap to the next.
        groups: divides I and O.

    Returns:
        [N, *image, I] float32.
    """

    g: Operand
    w: Operand
    image: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    tolerance = 1e-4

    def axes(self) -> ConvolutionAxes:
        """The spatial axes."""
        return ConvolutionAxes([int(d) for d in self.w.shape[2:]], self.stride, self.padding, self.dilation)

    def reference(self) -> Tensor:
        """The result in plain PyTorch, without oneDNN."""
        rank = self.g.dim()
        x = self.g.new_empty((self.g.shape[0], self.w.shape[1] * self.groups, *self.image))
        with without_onednn():
            gx, _, _ = torch.ops.aten.convolution_backward(
                self.g.permute(channels_first(rank)).contiguous(), x, self.w, None, self.stride, self.padding,
                self.dilation, False, [0] * (rank - 2), self.groups, [True, False, False],
            )  # fmt: skip
        result: Tensor = gx.permute(channels_last(rank)).clone(memory_format=torch.contiguous_format)
        return result

    def fake(self) -> Tensor:
        """Shape rule of ``reference``."""
        expected = (self.g.shape[0], *self.axes().outputs(self.image), self.w.shape[0])
        if tuple(self.g.shape) != expected:
            raise ValueError(f"a gradient {tuple(self.g.shape)} is not that of an output {expected}")
        return self.g.new_empty((self.g.shape[0], *self.image, self.w.shape[1] * self.groups))

    def compute(self) -> te.Tensor:
        """Sum over the outputs that read an image position, and the channels of its group."""
        n, *outputs, out_channels = (int(d) for d in self.g.shape)
        channels, *kernel = (int(d) for d in self.w.shape[1:])
        taps = [te.reduce_axis((0, extent), f"k{axis}") for axis, extent in enumerate(kernel)]
        per_group, axes = out_channels // self.groups, self.axes()
        o = te.reduce_axis((0, per_group), "o")

        def term(b: Any, *index: Any) -> Any:
            *position, c = index
            inside, at = axes.reader(position, taps, outputs)
            channel = c // channels * per_group + o
            product = self.g[(b, *at, channel)] * self.w[(channel, c % channels, *taps)]
            return te.sum(tirx.if_then_else(inside, product, tirx.const(0.0, "float32")), axis=[*taps, o])

        return te.compute((n, *self.image, channels * self.groups), term, name="grouped_conv_input_grad")

    def cost(self) -> Cost:
        """Two operations a multiply-accumulate."""
        gx = self.fake()
        return Cost(flops=2 * self.g.numel() * self.w[0].numel(), bytes_moved=tensor_bytes(self.g, self.w, gx))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The geometries of ``grouped_conv``."""
        r = torch.Generator().manual_seed(0)
        for n, image, i, o, kernel, stride, padding, dilation, groups in GROUPED_SAMPLES:
            outputs = ConvolutionAxes(kernel, stride, padding, dilation).outputs(image)
            g, w = torch.randn(n, *outputs, o, generator=r), torch.randn(o, i // groups, *kernel, generator=r)
            yield g, w, image, stride, padding, dilation, groups

    def onnx_body(self, op: Body) -> str:
        """A transposed convolution between two transpositions."""
        geometry = {name: ints(name) for name in ("kernel_shape", "strides", "pads", "dilations", "output_padding")}
        g = op("Transpose", self.g, perm=ints("to_first"))
        gx = op("ConvTranspose", g, self.w, group=integer("group"), **geometry)
        return op("Transpose", gx, perm=ints("to_last"))

    def onnx_attributes(self) -> Attributes:
        """Of a transposed convolution, and the permutations around it."""
        rank = len(self.g.shape)
        return {
            "kernel_shape": list(self.w.shape[2:]), "strides": self.stride, "pads": [*self.padding, *self.padding],
            "dilations": self.dilation, "output_padding": self.axes().unread(self.image, self.g.shape[1:-1]),
            "group": self.groups, "to_first": channels_first(rank), "to_last": channels_last(rank),
        }  # fmt: skip
