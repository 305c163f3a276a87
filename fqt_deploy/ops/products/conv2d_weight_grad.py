"""``fqt::conv2d_weight_grad``: gradient of a convolution with respect to its weight, from channels-last tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from fqt_deploy.ops.lib.convolution_shape import input_position, output_extents
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Attributes, Body, ints
from fqt_deploy.ops.lib.plain_convolution import without_onednn
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.products.conv2d import CONVOLUTION_SAMPLES
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, summed


@define(
    kind=Kind.PRODUCT, batch=summed("x", "g"), zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE
)
class Conv2dWeightGrad(FqtOp):
    """Correlation of the input with the output gradient.

    Attributes:
        x: [N, H, W, I] float32.
        g: [N, OH, OW, O] float32.
        kernel: KH, KW.
        stride: vertical and horizontal.
        padding: zeros above and below, left and right of the input.

    Returns:
        [O, I, KH, KW] float32.
    """

    x: Operand
    g: Operand
    kernel: list[int]
    stride: list[int]
    padding: list[int]

    tolerance = 1e-4

    def reference(self) -> Tensor:
        """The result in plain PyTorch.

        Without oneDNN, which on processors with AVX-512 writes outside of its memory for the weights of some 1x1
        convolutions with stride and few channels, channels last (PyTorch 2.13).
        """
        size = (self.g.shape[3], self.x.shape[3], *self.kernel)
        with without_onednn():
            gw: Tensor = conv2d_weight(
                self.x.permute(0, 3, 1, 2), size, self.g.permute(0, 3, 1, 2), self.stride, self.padding
            )  # type: ignore[no-untyped-call]
        return gw.clone(memory_format=torch.contiguous_format)

    def fake(self) -> Tensor:
        """Shape rule of ``reference``."""
        n, h, w, i = self.x.shape
        expected = (n, *output_extents([h, w], self.kernel, self.stride, self.padding))
        if tuple(self.g.shape[:3]) != expected:
            raise ValueError(f"a gradient {tuple(self.g.shape)} is not that of an output {expected}")
        return self.x.new_empty((self.g.shape[3], i, *self.kernel))

    def compute(self) -> te.Tensor:
        """The loop nest: sum over samples and output positions."""
        _, h, w, channels = (int(d) for d in self.x.shape)
        n, oh, ow, out_channels = (int(d) for d in self.g.shape)
        b, y, z = te.reduce_axis((0, n), "n"), te.reduce_axis((0, oh), "oh"), te.reduce_axis((0, ow), "ow")

        def term(o: Any, i: Any, kh: Any, kw: Any) -> Any:
            inside, at_h, at_w = input_position(y, z, kh, kw, [h, w], self.stride, self.padding)
            product = self.x[b, at_h, at_w, i] * self.g[b, y, z, o]
            return te.sum(tirx.if_then_else(inside, product, tirx.const(0.0, "float32")), axis=[b, y, z])

        return te.compute((out_channels, channels, *self.kernel), term, name="conv2d_weight_grad")

    def cost(self) -> Cost:
        """The cost: two operations a multiply-accumulate."""
        gw = self.fake()
        return Cost(
            flops=2 * self.g.numel() * self.x.shape[3] * self.kernel[0] * self.kernel[1],
            bytes_moved=tensor_bytes(self.x, self.g, gw),
        )

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: the geometries of ``conv2d``."""
        r = torch.Generator().manual_seed(0)
        for n, h, w, i, o, kernel, stride, padding in CONVOLUTION_SAMPLES:
            g = torch.randn(n, *output_extents([h, w], kernel, stride, padding), o, generator=r)
            yield torch.randn(n, h, w, i, generator=r), g, kernel, stride, padding

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: a convolution over the batch; image rows that no output reads give positions to leave out."""
        images = op("Transpose", self.x, perm=[3, 0, 1, 2])
        gradients = op("Transpose", self.g, perm=[3, 0, 1, 2])
        taps = op("Conv", images, gradients, dilations=ints("dilations"), pads=ints("pads"))
        starts, axes = op.constant([0, 0], "int64"), op.constant([2, 3], "int64")
        return op("Transpose", op("Slice", taps, starts, op.integers("kernel"), axes), perm=[1, 0, 2, 3])

    def onnx_attributes(self) -> Attributes:
        """The attributes in ONNX of a convolution whose kernel is the gradient: its strides are dilations."""
        return {"kernel": self.kernel, "dilations": self.stride, "pads": [*self.padding, *self.padding]}
