"""``fqt::grouped_conv``: floating point convolution with groups and dilation, over any number of spatial axes."""

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
from fqt_deploy.ops.traits import ANY_SIGN, Layout, Nan, leads, zero_with_any

GROUPED_SAMPLES = (
    (2, [6, 5], 32, 32, [3, 3], [1, 1], [1, 1], [1, 1], 32),
    (3, [9, 8], 24, 24, [5, 5], [2, 2], [2, 2], [1, 1], 24),
    (2, [7, 7], 20, 20, [3, 3], [2, 2], [1, 1], [2, 2], 20),
    (1, [5, 4], 5, 10, [3, 1], [1, 2], [1, 0], [1, 1], 5),
    (2, [6, 6], 8, 12, [3, 3], [2, 1], [0, 1], [1, 2], 4),
    (2, [9, 9], 3, 16, [3, 3], [1, 1], [2, 2], [2, 2], 1),
    (2, [4, 5], 16, 16, [2, 2], [2, 2], [0, 0], [1, 1], 1),
    (2, [4, 5, 6], 4, 6, [3, 2, 3], [1, 2, 2], [1, 0, 1], [1, 1, 1], 2),
    (2, [11], 16, 16, [7], [1], [3], [1], 16),
)
"""N, image, I, O, kernel, stride, padding, dilation, groups: depthwise with full and odd vectors, strides, dilation;
two outputs a channel; groups of several channels; dilation alone; a plain convolution; three axes and one axis."""


@define(
    kind=Kind.PRODUCT, batch=leads("x"), zero=zero_with_any("x"), sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE
)
class GroupedConv(FqtOp):
    """Convolution with zero padding, where each group of output channels reads a group of input channels.

    Attributes:
        x: [N, *image, I] float32.
        w: [O, I / groups, *kernel] float32.
        stride: one for each spatial axis, as the next two.
        padding: zeros on either side.
        dilation: positions from one tap to the next.
        groups: divides I and O.

    Returns:
        [N, *outputs, O] float32.
    """

    x: Operand
    w: Operand
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
        rank = self.x.dim()
        zeros = [0] * (rank - 2)
        with without_onednn():
            y = torch.ops.aten.convolution(
                self.x.permute(channels_first(rank)).contiguous(), self.w, None, self.stride, self.padding,
                self.dilation, False, zeros, self.groups,
            )  # fmt: skip
        result: Tensor = y.permute(channels_last(rank)).clone(memory_format=torch.contiguous_format)
        return result

    def fake(self) -> Tensor:
        """Shape rule of ``reference``."""
        n, *image, channels = self.x.shape
        if self.w.dim() != self.x.dim() or self.w.shape[1] * self.groups != channels or self.w.shape[0] % self.groups:
            raise ValueError(
                f"a weight {tuple(self.w.shape)} does not fit an input {tuple(self.x.shape)} in {self.groups} groups"
            )
        return self.x.new_empty((n, *self.axes().outputs(image), self.w.shape[0]))

    def compute(self) -> te.Tensor:
        """Sum over taps and the input channels of a group."""
        n, *image, _ = (int(d) for d in self.x.shape)
        out_channels, channels, *kernel = (int(d) for d in self.w.shape)
        taps = [te.reduce_axis((0, extent), f"k{axis}") for axis, extent in enumerate(kernel)]
        i, per_group, axes = te.reduce_axis((0, channels), "i"), out_channels // self.groups, self.axes()

        def term(b: Any, *index: Any) -> Any:
            *position, o = index
            inside, at = axes.read(position, taps, image)
            product = self.x[(b, *at, o // per_group * channels + i)] * self.w[(o, i, *taps)]
            return te.sum(tirx.if_then_else(inside, product, tirx.const(0.0, "float32")), axis=[*taps, i])

        return te.compute((n, *axes.outputs(image), out_channels), term, name="grouped_conv")

    def cost(self) -> Cost:
        """Two operations a multiply-accumulate."""
        y = self.fake()
        return Cost(flops=2 * y.numel() * self.w[0].numel(), bytes_moved=tensor_bytes(self.x, self.w, y))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """See ``GROUPED_SAMPLES``."""
        g = torch.Generator().manual_seed(0)
        for n, image, i, o, kernel, stride, padding, dilation, groups in GROUPED_SAMPLES:
            x, w = torch.randn(n, *image, i, generator=g), torch.randn(o, i // groups, *kernel, generator=g)
            yield x, w, stride, padding, dilation, groups

    def onnx_body(self, op: Body) -> str:
        """A convolution between two transpositions."""
        geometry = {name: ints(name) for name in ("kernel_shape", "strides", "pads", "dilations")}
        x = op("Transpose", self.x, perm=ints("to_first"))
        return op("Transpose", op("Conv", x, self.w, group=integer("group"), **geometry), perm=ints("to_last"))

    def onnx_attributes(self) -> Attributes:
        """Of a convolution, and the permutations around it."""
        rank = len(self.x.shape)
        return {
            "kernel_shape": list(self.w.shape[2:]), "strides": self.stride, "pads": [*self.padding, *self.padding],
            "dilations": self.dilation, "group": self.groups,
            "to_first": channels_first(rank), "to_last": channels_last(rank),
        }  # fmt: skip
