"""``fqt::tap_sums``: sum of the weight signs that reach each input position; the zero point's share of dgrad."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input

from fqt_deploy.ops.lib.convolution_shape import output_extents, output_position
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Attributes, Body
from fqt_deploy.ops.lib.packed_words import PANEL, WORD, pack_last_axis, popcount, to_panels, word_count
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.products.binary_conv2d import exact_below, onnx_signs_of_weight, signs_of_weight
from fqt_deploy.ops.products.conv2d_input_grad import conv_transpose, transposed_convolution
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


@define(kind=Kind.PRODUCT, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class TapSums(FqtOp):
    """Transposed convolution of an image of ones: zero padding keeps padded taps out of the correction as well.

    Attributes:
        w_bits: [ceil(I / 16), KH * KW * ceil(O / 32), 16] int32, see ``transpose_packed_weight``.
        in_channels: I.
        out_channels: O.
        input_hw: height and width of the layer's input.
        output_hw: height and width of its output.
        kernel: KH, KW.
        stride: the stride of the forward convolution.
        padding: the padding of the forward convolution.

    Returns:
        [H, W, I] int32.
    """

    w_bits: Operand
    in_channels: int
    out_channels: int
    input_hw: list[int]
    output_hw: list[int]
    kernel: list[int]
    stride: list[int]
    padding: list[int]

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        w = signs_of_weight(self.w_bits, self.out_channels, self.in_channels, self.kernel).transpose(0, 1)
        ones = torch.ones(1, self.out_channels, *self.output_hw, dtype=torch.float64)
        sums: Tensor = conv2d_input(  # type: ignore[no-untyped-call]
            (1, self.in_channels, *self.input_hw), w.double(), ones, self.stride, self.padding
        )
        return sums[0].permute(1, 2, 0).contiguous().to(torch.int32)

    def fake(self) -> Tensor:
        """Shape rule of ``reference``."""
        if output_extents(self.input_hw, self.kernel, self.stride, self.padding) != list(self.output_hw):
            raise ValueError(f"an output of {self.output_hw} does not belong to an input of {self.input_hw}")
        return self.w_bits.new_empty((*self.input_hw, self.in_channels), dtype=torch.int32)

    def compute(self) -> te.Tensor:
        """The loop nest: sum the signs of every tap once, then add up the taps that reach a position."""
        words = word_count(self.out_channels)
        word = te.reduce_axis((0, words), "word")

        def signs(tap: Any, i: Any) -> Any:
            row = self.w_bits[i // PANEL, tap * words + word, i % PANEL]
            present: Any = tirx.min(self.out_channels - word * WORD, WORD) if self.out_channels % WORD else WORD
            return te.sum(2 * popcount(row) - present, axis=word)

        per_tap = te.compute((self.kernel[0] * self.kernel[1], self.in_channels), signs, name="tap_sums_per_tap")
        kh, kw = te.reduce_axis((0, self.kernel[0]), "kh"), te.reduce_axis((0, self.kernel[1]), "kw")

        def term(h: Any, w: Any, i: Any) -> Any:
            inside, _, _ = output_position(h, w, kh, kw, self.output_hw, self.stride, self.padding)
            return te.sum(tirx.if_then_else(inside, per_tap[kh * self.kernel[1] + kw, i], 0), axis=[kh, kw])

        return te.compute((*self.input_hw, self.in_channels), term, name="tap_sums")

    def cost(self) -> Cost:
        """The cost: a few integer additions a position."""
        return Cost(bytes_moved=tensor_bytes(self.w_bits) + 4 * self.in_channels * self.input_hw[0] * self.input_hw[1])

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: padding, stride, partial words."""
        g = torch.Generator().manual_seed(0)
        cases = (
            (6, 5, 32, 64, [3, 3], [1, 1], [1, 1]),
            (7, 7, 17, 33, [3, 3], [2, 2], [1, 1]),
            (4, 4, 48, 40, [1, 1], [2, 2], [0, 0]),
        )
        for h, w, i, o, kernel, stride, padding in cases:
            weight = to_panels(pack_last_axis(torch.randn(i, *kernel, o, generator=g) > 0).flatten(1))
            yield weight, i, o, [h, w], output_extents([h, w], kernel, stride, padding), kernel, stride, padding

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: a transposed convolution of ones."""
        w = onnx_signs_of_weight(op, self.w_bits, rows="in_channels", columns="out_channels", perm=[3, 0, 1, 2])
        extents = op.shape(1, op.reshape(op.integer("out_channels"), 1), op.integers("output_hw"))
        sums = conv_transpose(op, op("Expand", op.constant(1.0, "float32"), extents), w)
        return op.cast(op("Squeeze", op.channels_last(sums), op.constant([0], "int64")), "int32")

    def onnx_attributes(self) -> Attributes:
        """The attributes of a transposed convolution in ONNX."""
        exact_below(self.out_channels * self.kernel[0] * self.kernel[1])
        return {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "output_hw": self.output_hw,
            **transposed_convolution(self.input_hw, self.output_hw, self.kernel, self.stride, self.padding),
        }
