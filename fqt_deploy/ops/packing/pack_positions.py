"""``fqt::pack_positions``: sign bits of the layer's input, repacked along output positions for the weight gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib import onnx_bits
from fqt_deploy.ops.lib.convolution_shape import input_position, output_extents
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_bits import BITS, table
from fqt_deploy.ops.lib.onnx_body import Attributes, Body
from fqt_deploy.ops.lib.packed_words import (
    PANEL,
    WORD,
    bit_of,
    pack_last_axis,
    packed,
    panel_count,
    to_panels,
    unpack_last_axis,
    word_count,
)
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


def table_rows(op: Body, words: str) -> str:
    """The bits of every word: [T, W, P] int32 -> [T, W, P, 32] uint8."""
    return op.reshape(table(op, words, BITS, "uint8"), 0, 0, 0, WORD)


@define(kind=Kind.PRODUCT, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class PackPositions(FqtOp):
    """One row of position bits for every tap and input channel, and one validity row for every tap.

    Row ``t * I + i``: whether channel ``i`` at tap ``t`` of each position is +1. Row ``T * I + t``: whether tap ``t``
    lies inside the image there. Bits of padded taps are 0 in both.

    Attributes:
        x_bits: [N, H, W, ceil(I / 32)] int32.
        in_channels: I.
        kernel: KH, KW; T = KH * KW.
        stride: the stride of the forward convolution.
        padding: the padding of the forward convolution.
        output_hw: OH, OW.

    Returns:
        [ceil((T * I + T) / 16), ceil(N * OH * OW / 32), 16] int32.
    """

    x_bits: Operand
    in_channels: int
    kernel: list[int]
    stride: list[int]
    padding: list[int]
    output_hw: list[int]

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        n, h, w, _ = self.x_bits.shape
        ones = torch.ones(n, h, w, 1, dtype=torch.int64)
        image = torch.cat([unpack_last_axis(self.x_bits, self.in_channels), ones], 3)
        image = torch.nn.functional.pad(
            image, (0, 0, self.padding[1], self.padding[1], self.padding[0], self.padding[0])
        )
        values, masks = [], []
        for kh in range(self.kernel[0]):
            for kw in range(self.kernel[1]):
                rows = image[:, kh : kh + (self.output_hw[0] - 1) * self.stride[0] + 1 : self.stride[0]]
                tap = (
                    rows[:, :, kw : kw + (self.output_hw[1] - 1) * self.stride[1] + 1 : self.stride[1]]
                    .flatten(0, 2)
                    .t()
                )
                values.append(tap[:-1])
                masks.append(tap[-1:])
        return to_panels(pack_last_axis(torch.cat(values + masks) > 0))

    def fake(self) -> Tensor:
        """Shape rule of ``reference``."""
        n, h, w, words = self.x_bits.shape
        if words != word_count(self.in_channels) or output_extents(
            [h, w], self.kernel, self.stride, self.padding
        ) != list(self.output_hw):
            raise ValueError(
                f"packed image {tuple(self.x_bits.shape)} does not fit {self.in_channels} channels, "
                f"output {self.output_hw}"
            )
        rows = self.kernel[0] * self.kernel[1] * (self.in_channels + 1)
        return self.x_bits.new_empty((panel_count(rows), word_count(n * self.output_hw[0] * self.output_hw[1]), PANEL))

    def compute(self) -> te.Tensor:
        """The loop nest: gather bit by bit."""
        n, h, w, _ = (int(d) for d in self.x_bits.shape)
        taps = self.kernel[0] * self.kernel[1]
        positions, image = n * self.output_hw[0] * self.output_hw[1], self.output_hw[0] * self.output_hw[1]

        def bit(panel: Any, word: Any, lane: Any, k: Any) -> Any:
            row, position = panel * PANEL + lane, word * WORD + k
            is_value = row < taps * self.in_channels
            tap = tirx.if_then_else(is_value, row // self.in_channels, row - taps * self.in_channels)
            channel = tirx.if_then_else(is_value, row % self.in_channels, 0)
            sample, place = position // image, position % image
            inside, y, x = input_position(
                place // self.output_hw[1],
                place % self.output_hw[1],
                tap // self.kernel[1],
                tap % self.kernel[1],
                [h, w],
                self.stride,
                self.padding,
            )
            exists = tirx.all(position < positions, row < taps * (self.in_channels + 1), inside)
            value = bit_of(self.x_bits[sample, y, x, channel // WORD], channel % WORD)
            return tirx.if_then_else(exists, tirx.if_then_else(is_value, value, 1), 0)

        shape = (panel_count(taps * (self.in_channels + 1)), word_count(positions), PANEL)
        return packed(shape, bit, name="pack_positions")

    def cost(self) -> Cost:
        """The cost: memory traffic only."""
        rows = self.fake()
        return Cost(bytes_moved=tensor_bytes(self.x_bits, rows))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: padding, stride, partial words of channels and of positions, a linear layer."""
        g = torch.Generator().manual_seed(0)
        cases = (
            (2, 8, 8, 32, [3, 3], [1, 1], [1, 1]),
            (4, 8, 8, 64, [3, 3], [1, 1], [1, 1]),
            (2, 6, 5, 33, [3, 3], [1, 1], [1, 1]),
            (3, 7, 7, 17, [3, 3], [2, 2], [1, 1]),
            (1, 4, 4, 40, [1, 1], [2, 2], [0, 0]),
            (1, 1, 9, 70, [1, 1], [1, 1], [0, 0]),
            (2, 8, 32, 32, [3, 3], [1, 1], [1, 1]),
            (8, 4, 4, 512, [3, 3], [1, 1], [1, 1]),
            (3, 7, 7, 32, [3, 3], [2, 2], [1, 1]),
            (3, 7, 7, 48, [3, 3], [1, 1], [1, 1]),
            (2, 4, 16, 64, [3, 3], [1, 1], [1, 1]),
        )
        for n, h, w, i, kernel, stride, padding in cases:
            x = pack_last_axis(torch.randn(n, h, w, i, generator=g) > 0)
            yield x, i, kernel, stride, padding, output_extents([h, w], kernel, stride, padding)

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: the packed channels of every tap and position; then positions become the packed axis."""
        kernel, stride, output = op.integers("kernel_shape"), op.integers("strides"), op.integers("output_hw")
        channels = op("Unsqueeze", op.integer("in_channels"), op.constant([0], "int64"))
        padded = op("Pad", self.x_bits, op.integers("pads"), op.constant(0, "int32"))
        extents = op("Shape", padded, start=1, end=3)

        def steps(axis: int) -> str:  # [taps, positions] int64: where each tap of each position lies
            at = op.constant([axis], "int64")
            taps = op.reshape(op.range(op("Gather", kernel, at)), -1, 1)
            return op("Add", taps, op("Mul", op.range(op("Gather", output, at)), op("Gather", stride, at)))

        rows, columns = steps(0), steps(1)
        samples = op.reshape(op.range(op.extent(padded, 0)), 1, 1, -1, 1, 1)
        height = op.reshape(op("Gather", extents, op.constant(0, "int64")), 1)
        width = op.reshape(op("Gather", extents, op.constant(1, "int64")), 1)
        row = op("Add", op("Mul", samples, height), op.unsqueeze(rows, 1, 2, 4))
        place = op("Add", op("Mul", row, width), op.unsqueeze(columns, 0, 2, 3))  # [KH, KW, N, OH, OW]
        taps = op.shape(op("ReduceProd", kernel, op.constant([0], "int64")))
        index = op.reshape(place, taps, -1)
        ones = op("Expand", op.constant(1, "int32"), op.shape(op("Shape", self.x_bits, end=3), 1))
        image = op("Concat", padded, op("Pad", ones, op.integers("pads"), op.constant(0, "int32")), axis=3)
        flat = op.reshape(image, -1, op.extent(image, 3))
        words = op("Transpose", op("Gather", flat, index, axis=0), perm=[0, 2, 1])  # [T, words + 1, positions]
        spread = op("Transpose", table_rows(op, words), perm=[0, 1, 3, 2])  # [T, words + 1, 32, positions] uint8
        bits = op.reshape(spread, taps, -1, op.extent(index, 1))  # [T, 32 (words + 1), positions]
        values = op.front(bits, channels, 1)
        first = op("Mul", op.constant([WORD], "int64"), op.extent(self.x_bits, 3))
        masks = op.front(op.back(bits, first, 1), op.constant([1], "int64"), 1)
        positions = op.extent(index, 1)
        both = op("Concat", op.reshape(values, -1, positions), op.reshape(masks, -1, positions), axis=0)
        return onnx_bits.to_panels(op, onnx_bits.pack(op, op.cast(both, "bool")))

    def onnx_attributes(self) -> Attributes:
        """The attributes in ONNX; the image's padding comes as ``Pad`` takes it."""
        return {
            "in_channels": self.in_channels,
            "kernel_shape": self.kernel,
            "strides": self.stride,
            "pads": [0, *self.padding, 0, 0, *self.padding, 0],
            "output_hw": self.output_hw,
        }
