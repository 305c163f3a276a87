"""``fqt::grouped_conv_weight_grad``: gradient of ``grouped_conv`` with respect to its weight."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.convolution_axes import ConvolutionAxes, channels_first
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Attributes, Body, integer, ints
from fqt_deploy.ops.lib.plain_convolution import without_onednn
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.products.grouped_conv import GROUPED_SAMPLES
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, summed


@define(
    kind=Kind.PRODUCT, batch=summed("x", "g"), zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE
)
class GroupedConvWeightGrad(FqtOp):
    """Correlation of the input with the output gradient, group by group.

    Attributes:
        x: [N, *image, I] float32.
        g: [N, *outputs, O] float32.
        kernel: taps of each spatial axis.
        stride: one for each spatial axis, as the next two.
        padding: zeros on either side of the input.
        dilation: positions from one tap to the next.
        groups: divides I and O.

    Returns:
        [O, I / groups, *kernel] float32.
    """

    x: Operand
    g: Operand
    kernel: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    tolerance = 1e-4

    def axes(self) -> ConvolutionAxes:
        """The spatial axes."""
        return ConvolutionAxes(self.kernel, self.stride, self.padding, self.dilation)

    def reference(self) -> Tensor:
        """The result in plain PyTorch, without oneDNN."""
        order = channels_first(self.x.dim())
        with without_onednn():
            _, gw, _ = torch.ops.aten.convolution_backward(
                self.g.permute(order).contiguous(), self.x.permute(order).contiguous(),
                self.x.new_empty(self.fake().shape), None, self.stride, self.padding, self.dilation, False,
                [0] * len(self.kernel), self.groups, [False, True, False],
            )  # fmt: skip
        result: Tensor = gw.clone(memory_format=torch.contiguous_format)
        return result

    def fake(self) -> Tensor:
        """Shape rule of ``reference``."""
        n, *image, channels = self.x.shape
        expected = (n, *self.axes().outputs(image))
        if tuple(self.g.shape[:-1]) != expected or channels % self.groups or self.g.shape[-1] % self.groups:
            raise ValueError(
                f"a gradient {tuple(self.g.shape)} is not that of an output {expected} in {self.groups} groups"
            )
        return self.x.new_empty((self.g.shape[-1], channels // self.groups, *self.kernel))

    def compute(self) -> te.Tensor:
        """Sum over samples and output positions."""
        _, *image, in_channels = (int(d) for d in self.x.shape)
        n, *outputs, out_channels = (int(d) for d in self.g.shape)
        channels, per_group, axes = in_channels // self.groups, out_channels // self.groups, self.axes()
        b = te.reduce_axis((0, n), "n")
        positions = [te.reduce_axis((0, extent), f"p{axis}") for axis, extent in enumerate(outputs)]

        def term(o: Any, i: Any, *taps: Any) -> Any:
            inside, at = axes.read(positions, taps, image)
            product = self.x[(b, *at, o // per_group * channels + i)] * self.g[(b, *positions, o)]
            return te.sum(tirx.if_then_else(inside, product, tirx.const(0.0, "float32")), axis=[b, *positions])

        return te.compute((out_channels, channels, *self.kernel), term, name="grouped_conv_weight_grad")

    def cost(self) -> Cost:
        """Two operations a multiply-accumulate."""
        gw = self.fake()
        return Cost(flops=2 * self.g.numel() * gw[0].numel(), bytes_moved=tensor_bytes(self.x, self.g, gw))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The geometries of ``grouped_conv``."""
        r = torch.Generator().manual_seed(0)
        for n, image, i, o, kernel, stride, padding, dilation, groups in GROUPED_SAMPLES:
            outputs = ConvolutionAxes(kernel, stride, padding, dilation).outputs(image)
            x, g = torch.randn(n, *image, i, generator=r), torch.randn(n, *outputs, o, generator=r)
            yield x, g, kernel, stride, padding, dilation, groups

    def onnx_body(self, op: Body) -> str:
        """A convolution over the batch, in which groups hold the samples of their channels.

        Positions past the kernel come from image rows that no output reads.
        """
        group, samples = op.reshape(op.integer("group"), 1), op.extent(self.x, 0)
        image = op("Shape", self.x, start=1, end=-1)
        by_channel = op("Transpose", self.x, perm=ints("samples_second"))  # [I, N, *image]
        by_group = op(
            "Transpose", op.reshape(by_channel, group, op("Div", op.extent(self.x, -1), group), -1), perm=[1, 0, 2]
        )
        images = op.reshape(by_group, op.extent(by_group, 0), op("Mul", group, samples), image)
        gradients = op("Transpose", self.g, perm=ints("samples_second"))
        geometry = {name: ints(name) for name in ("dilations", "strides", "pads")}
        taps = op("Conv", images, gradients, group=integer("group"), **geometry)
        axes = op.integers("spatial")
        kernel = op("Slice", taps, op("Sub", axes, axes), op.integers("kernel"), axes)
        return op("Transpose", kernel, perm=ints("swapped"))

    def onnx_attributes(self) -> Attributes:
        """Of a convolution whose kernel is the gradient: its strides are dilations, its dilations strides."""
        rank = len(self.x.shape)
        return {
            "kernel": self.kernel, "dilations": self.stride, "strides": self.dilation,
            "pads": [*self.padding, *self.padding], "group": self.groups,
            "samples_second": [rank - 1, *range(rank - 1)], "spatial": list(range(2, rank)),
            "swapped": [1, 0, *range(2, rank)],
        }  # fmt: skip
