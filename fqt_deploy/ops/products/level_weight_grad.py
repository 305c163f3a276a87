"""``fqt::level_weight_grad``: weight-gradient product of gradient codes and activations of several bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib import levels, onnx_bits
from fqt_deploy.ops.lib.late_modules import te
from fqt_deploy.ops.lib.onnx_bits import BITS, codes_of_planes, unpack
from fqt_deploy.ops.lib.onnx_body import Attributes, Body
from fqt_deploy.ops.lib.packed_words import (
    PANEL,
    WORD,
    from_panels,
    pack_last_axis,
    panel_count,
    popcount,
    to_panels,
    unpack_last_axis,
)
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.products.bitplane_weight_grad import onnx_taps
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


def row_count(in_channels: int, kernel: list[int], bits: int) -> int:
    """The rows of positions: those of every plane of every tap, channels that fill words included, and of masks."""
    return kernel[0] * kernel[1] * (bits * levels.plane_channels(in_channels) + 1)


def levels_of_rows(rows: Tensor, in_channels: int, kernel: list[int], bits: int, signed: bool) -> Tensor:
    """The level of every tap, channel and position: bits [R, P] int64 -> [T, I, P] int64; 0 outside the image."""
    taps, channels = kernel[0] * kernel[1], levels.plane_channels(in_channels)
    values = rows[: taps * bits * channels].view(taps, bits, channels, -1)
    masks = rows[taps * bits * channels :].view(taps, 1, -1)
    codes = (values << torch.arange(bits).view(-1, 1, 1)).sum(1)
    return (levels.levels_of(codes, bits, signed) * masks)[:, :in_channels]


@define(kind=Kind.PRODUCT, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class LevelWeightGrad(FqtOp):
    """Sum of gradient code times input level over all positions where the tap is inside the image.

    Attributes:
        planes: [W, G, K] int32: word w, bit k: bit-plane p of the code of position 32 w + k, for each kept channel.
        positions: [panels, W, 16] int32, the ``pack_positions`` of [N, H, W, B * words]: all planes of a tap one after
            another, each filled up to whole words.
        in_channels: I.
        kernel: KH, KW, with T = KH * KW.
        bits: planes of an activation, B.
        signed: the kind of its grid.

    Returns:
        [K, I, KH, KW] int32, laid out like the weight.
    """

    planes: Operand
    positions: Operand
    in_channels: int
    kernel: list[int]
    bits: int
    signed: bool

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        words, width, kept = self.planes.shape
        codes = unpack_last_axis(self.planes.permute(1, 2, 0), words * 32)
        codes = (codes << torch.arange(width).view(-1, 1, 1)).sum(0).double()
        rows = unpack_last_axis(
            from_panels(self.positions, row_count(self.in_channels, self.kernel, self.bits)), words * 32
        )
        values = levels_of_rows(rows, self.in_channels, self.kernel, self.bits, self.signed).double()
        product = (codes @ values.flatten(0, 1).t()).view(kept, *self.kernel, self.in_channels)
        return product.permute(0, 3, 1, 2).to(torch.int32, memory_format=torch.contiguous_format)

    def fake(self) -> Tensor:
        """Shape rule of ``reference``."""
        rows = row_count(self.in_channels, self.kernel, self.bits)
        if tuple(self.positions.shape) != (panel_count(rows), self.planes.shape[0], PANEL):
            raise ValueError(
                f"planes {tuple(self.planes.shape)} and positions {tuple(self.positions.shape)} do not match"
            )
        return self.planes.new_empty((self.planes.shape[2], self.in_channels, *self.kernel))

    def compute(self) -> te.Tensor:
        """The loop nest: the shared ones of every row, masks too; then a channel's planes, weighed and added."""
        words, width, kept = (int(d) for d in self.planes.shape)
        taps, channels = self.kernel[0] * self.kernel[1], levels.plane_channels(self.in_channels)
        rows = row_count(self.in_channels, self.kernel, self.bits)
        word, plane = te.reduce_axis((0, words), "word"), te.reduce_axis((0, width), "plane")
        counts = te.compute(
            (kept, rows),
            lambda c, r: te.sum(
                popcount(self.planes[word, plane, c] & self.positions[r // PANEL, word, r % PANEL]) << plane,
                axis=[word, plane],
            ),
            name="level_weight_grad_counts",
        )

        def total(c: Any, i: Any, kh: Any, kw: Any) -> Any:
            tap = kh * self.kernel[1] + kw
            found: Any = 0
            for p in range(self.bits):
                found = found + (counts[c, (tap * self.bits + p) * channels + i] << p)
            masked = counts[c, taps * self.bits * channels + tap]
            return 2 * found - levels.largest_code(self.bits) * masked if self.signed else found

        return te.compute((kept, self.in_channels, *self.kernel), total, name="level_weight_grad")

    def cost(self) -> Cost:
        """The cost: two bit operations a multiply-accumulate of one plane with one plane."""
        words, width, kept = self.planes.shape
        weights = kept * self.in_channels * self.kernel[0] * self.kernel[1]
        work = 2 * 32 * words * width * self.bits * weights
        return Cost(bit_ops=work, bytes_moved=tensor_bytes(self.planes, self.positions) + 4 * weights)

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: both grids, full and partial words, one word, one channel, two tiles of channels."""
        g = torch.Generator().manual_seed(0)
        cases = (
            (8, 4, 16, 32, [3, 3], 2, True), (8, 4, 16, 64, [3, 3], 2, False), (5, 2, 7, 33, [4, 1], 3, True),
            (1, 1, 1, 5, [1, 1], 8, False), (20, 8, 24, 16, [1, 1], 4, True), (19, 4, 32, 64, [3, 3], 4, True),
            (9, 3, 32, 32, [3, 3], 4, False), (6, 3, 8, 96, [2, 2], 1, False),
        )  # fmt: skip
        for words, width, kept, channels, kernel, bits, signed in cases:
            taps, filled = kernel[0] * kernel[1], levels.plane_channels(channels)
            planes = pack_last_axis(torch.randint(0, 2, (words, width, kept, 32), generator=g) > 0)[..., 0].contiguous()
            values = torch.randint(0, 2, (taps, bits, filled, words * 32), generator=g)
            values[:, :, channels:] = 0
            masks = torch.randint(0, 2, (taps, 1, 1, words * 32), generator=g)
            rows = torch.cat([(values * masks).flatten(0, 2), masks[:, 0, 0]])
            yield planes, to_panels(pack_last_axis(rows > 0)), channels, kernel, bits, signed

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: one integer matrix product for all rows, masks included; then planes are added."""
        taps, kernel = onnx_taps(op), op.integers("kernel")
        values = op("Mul", taps, op.reshape(op.integer("row_channels"), 1))
        bits = unpack(op, op("Transpose", self.planes, perm=[0, 2, 1]), BITS, "float32")  # [W, K, 32 G]
        codes = op.cast(codes_of_planes(op, op.reshape(bits, 0, 0, -1, WORD), -2), "uint8")  # [W, K, 32]
        by_position = op.reshape(op("Transpose", codes, perm=[0, 2, 1]), -1, op.extent(codes, 1))  # [32 W, K]
        rows = unpack(op, onnx_bits.from_panels(op, self.positions, op("Add", values, taps)), BITS, "uint8")
        counts = op("Transpose", op("MatMulInteger", rows, by_position), perm=[1, 0])  # [K, rows]
        sums = onnx_levels(op, op.front(counts, values, 1), op.back(counts, values, 1), taps)  # [K, T, I]
        result = op("Transpose", sums, perm=[0, 2, 1])
        channels = op.reshape(op.integer("in_channels"), 1)
        return op.reshape(result, op("Shape", self.planes, start=2), channels, kernel)

    def onnx_attributes(self) -> Attributes:
        """The attributes in ONNX: sizes, and how sums of levels come of counts."""
        return onnx_level_attributes(self.in_channels, self.kernel, self.bits, self.signed)


def onnx_levels(op: Body, values: str, masks: str, taps: str) -> str:
    """Sums of levels from counts: [K, T * B * C] and [K, T] int32 -> [K, T, I] int32."""
    bits, channels = op.reshape(op.integer("bits"), 1), op.reshape(op.integer("in_channels"), 1)
    by_plane = op.reshape(values, 0, taps, bits, -1)
    shifts = op.reshape(op.cast(op.range(bits), "float32"), -1, 1)
    weights = op.cast(op("Pow", op.constant(2.0, "float32"), shifts), "int32")
    codes = op.front(op.sum(op("Mul", by_plane, weights), 2), channels, 2)
    scaled = op("Mul", codes, op.cast(op.integer("factor"), "int32"))
    return op("Add", scaled, op("Mul", op.unsqueeze(masks, 2), op.cast(op.integer("first"), "int32")))


def onnx_level_attributes(in_channels: int, kernel: list[int], bits: int, signed: bool) -> Attributes:
    """The attributes that ``onnx_levels`` reads; a level is ``factor`` times its code plus ``first``."""
    return {
        "in_channels": in_channels,
        "kernel": kernel,
        "bits": bits,
        "row_channels": bits * levels.plane_channels(in_channels),
        "factor": 2 if signed else 1,
        "first": -levels.largest_code(bits) if signed else 0,
    }
