"""``fqt::bitplane_conv2d_input_grad``: activation-gradient product of gradient bit-planes and weight signs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input

from fqt_deploy.ops.lib.convolution_shape import output_extents, output_position
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_bits import BITS, codes_of_planes, unpack
from fqt_deploy.ops.lib.onnx_body import Attributes, Body
from fqt_deploy.ops.lib.packed_words import (
    PANEL,
    pack_last_axis,
    panel_count,
    popcount,
    to_panels,
    unpack_last_axis,
    word_count,
)
from fqt_deploy.ops.lib.weight_planes import largest_weight, of_planes, weight_planes
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.products.binary_conv2d import exact_below, onnx_signs_of_weight, signs_of_weight
from fqt_deploy.ops.products.conv2d_input_grad import conv_transpose, transposed_convolution
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


@define(kind=Kind.PRODUCT, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class BitplaneConv2dInputGrad(FqtOp):
    """Transposed convolution of integer codes with signs (algorithm, section 3): the sum over valid taps only.

    Attributes:
        planes: [K, OH, OW, B, ceil(O / 32)] int32: plane p holds bit p of every code.
        w_bits: [ceil(I / 16), KH * KW * ceil(O / 32), 16] int32, see ``transpose_packed_weight``; with an axis in front
            of it for several planes, whose levels then stand in the place of signs.
        in_channels: I.
        out_channels: O.
        input_hw: height and width of the layer's input.
        kernel: KH, KW.
        stride: the stride of the forward convolution.
        padding: the padding of the forward convolution.

    Returns:
        [K, H, W, I] int32.
    """

    planes: Operand
    w_bits: Operand
    in_channels: int
    out_channels: int
    input_hw: list[int]
    kernel: list[int]
    stride: list[int]
    padding: list[int]

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        bits = unpack_last_axis(self.planes, self.out_channels)
        codes = (bits << torch.arange(self.planes.shape[3]).view(-1, 1)).sum(3)
        w = signs_of_weight(self.w_bits, self.out_channels, self.in_channels, self.kernel).transpose(0, 1)
        gradient: Tensor = conv2d_input(  # type: ignore[no-untyped-call]
            (self.planes.shape[0], self.in_channels, *self.input_hw),
            w.double(),
            codes.permute(0, 3, 1, 2).double(),
            self.stride,
            self.padding,
        )
        return gradient.permute(0, 2, 3, 1).contiguous().to(torch.int32)

    def fake(self) -> Tensor:
        """Shape rule of ``reference``."""
        k, oh, ow, _, words = self.planes.shape
        expected = (panel_count(self.in_channels), self.kernel[0] * self.kernel[1] * words, PANEL)
        if words != word_count(self.out_channels) or tuple(self.w_bits.shape[-3:]) != expected:
            raise ValueError(
                f"packed shapes {tuple(self.planes.shape)}, {tuple(self.w_bits.shape)} "
                f"do not fit {self.out_channels} channels"
            )
        if output_extents(self.input_hw, self.kernel, self.stride, self.padding) != [oh, ow]:
            raise ValueError(f"a gradient of {oh} x {ow} does not belong to an input of {self.input_hw}")
        return self.planes.new_empty((k, *self.input_hw, self.in_channels), dtype=torch.int32)

    def compute(self) -> te.Tensor:
        """The loop nest: a plane's word contributes twice the ones it shares with the weight, minus all its ones."""
        k, oh, ow, bits, words = (int(d) for d in self.planes.shape)
        kh, kw = te.reduce_axis((0, self.kernel[0]), "kh"), te.reduce_axis((0, self.kernel[1]), "kw")
        plane, word = te.reduce_axis((0, bits), "plane"), te.reduce_axis((0, words), "word")

        def term(n: Any, h: Any, w: Any, i: Any) -> Any:
            inside, y, x = output_position(h, w, kh, kw, [oh, ow], self.stride, self.padding)
            code = self.planes[n, y, x, plane, word]
            place, ones = (i // PANEL, (kh * self.kernel[1] + kw) * words + word, i % PANEL), popcount(code)
            product = of_planes(self.w_bits, lambda weight: 2 * popcount(code & weight(*place)) - ones) << plane
            return te.sum(tirx.if_then_else(inside, product, 0), axis=[kh, kw, plane, word])

        return te.compute((k, *self.input_hw, self.in_channels), term, name="bitplane_conv2d_input_grad")

    def cost(self) -> Cost:
        """The cost: two bit operations a multiply-accumulate of one plane."""
        k, oh, ow, bits, _ = self.planes.shape
        planes = bits * weight_planes(self.w_bits)
        work = 2 * k * oh * ow * planes * self.out_channels * self.in_channels * self.kernel[0] * self.kernel[1]
        result = 4 * k * self.input_hw[0] * self.input_hw[1] * self.in_channels
        return Cost(bit_ops=work, bytes_moved=tensor_bytes(self.planes, self.w_bits) + result)

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: every code width, padding, stride, partial words, a linear layer, what fills AMX tiles."""
        g = torch.Generator().manual_seed(0)
        cases = (
            (2, 6, 5, 32, 64, [3, 3], [1, 1], [1, 1], 4),
            (3, 7, 7, 17, 33, [3, 3], [2, 2], [1, 1], 2),
            (1, 4, 4, 48, 40, [1, 1], [2, 2], [0, 0], 1),
            (1, 1, 9, 10, 70, [1, 1], [1, 1], [0, 0], 8),
            (2, 2, 2, 16, 32, [3, 3], [1, 1], [1, 1], 4),
            (2, 3, 16, 32, 64, [3, 3], [1, 1], [1, 1], 3),
            # tiles of sixteen positions of a row, and of sixteen samples
            (2, 3, 16, 32, 64, [3, 3], [1, 1], [1, 1], 2),
            (3, 2, 24, 64, 128, [3, 3], [1, 1], [1, 1], 8),
            (16, 3, 3, 64, 64, [3, 3], [2, 2], [1, 1], 4),
            # a product of matrices, with rows that leave a tile filled in part
            (3, 1, 61, 64, 128, [1, 1], [1, 1], [0, 0], 4),
        )
        for k, h, w, i, o, kernel, stride, padding, bits in cases:
            oh, ow = output_extents([h, w], kernel, stride, padding)
            planes = pack_last_axis(torch.randint(0, 2, (k, oh, ow, bits, o), generator=g) > 0)
            weight = to_panels(pack_last_axis(torch.randn(i, *kernel, o, generator=g) > 0).flatten(1))
            yield planes, weight, i, o, [h, w], kernel, stride, padding

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: a transposed convolution of codes with signs in float32."""
        bits = op.front(unpack(op, self.planes, BITS, "float32"), op.reshape(op.integer("out_channels"), 1), 4)
        codes = op.channels_first(codes_of_planes(op, bits, -2))
        w = onnx_signs_of_weight(op, self.w_bits, rows="in_channels", columns="out_channels", perm=[3, 0, 1, 2])
        return op.cast(op.channels_last(conv_transpose(op, codes, w)), "int32")

    def onnx_attributes(self) -> Attributes:
        """The attributes in ONNX; ``output_padding`` are the image rows and columns that no output reads."""
        largest = (2 ** self.planes.shape[3] - 1) * largest_weight(self.w_bits)
        exact_below(self.out_channels * self.kernel[0] * self.kernel[1] * largest)
        return {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            **transposed_convolution(
                self.input_hw, list(self.planes.shape[1:3]), self.kernel, self.stride, self.padding
            ),
        }
