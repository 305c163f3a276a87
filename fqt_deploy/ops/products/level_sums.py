"""``fqt::level_sums``: sum of the input levels that each weight meets; the zero point's share of wgrad."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from fqt_deploy.ops.lib import levels
from fqt_deploy.ops.lib.late_modules import te
from fqt_deploy.ops.lib.onnx_bits import ONES, table
from fqt_deploy.ops.lib.onnx_body import Attributes, Body
from fqt_deploy.ops.lib.packed_words import PANEL, from_panels, popcount, unpack_last_axis
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.products.bitplane_weight_grad import onnx_taps
from fqt_deploy.ops.products.level_weight_grad import (
    LevelWeightGrad,
    levels_of_rows,
    onnx_level_attributes,
    onnx_levels,
    row_count,
)
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


@define(kind=Kind.PRODUCT, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class LevelSums(FqtOp):
    """Sum over all positions of the level at each tap and channel; padded taps count 0.

    Attributes:
        positions: [panels, W, 16] int32, as ``level_weight_grad`` takes them.
        in_channels: I.
        kernel: KH, KW, with T = KH * KW.
        bits: planes of an activation, B.
        signed: the kind of its grid.

    Returns:
        [I, KH, KW] int32, laid out like the weight of one output channel.
    """

    positions: Operand
    in_channels: int
    kernel: list[int]
    bits: int
    signed: bool

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        rows = from_panels(self.positions, row_count(self.in_channels, self.kernel, self.bits))
        rows = unpack_last_axis(rows, rows.shape[1] * 32)
        sums = levels_of_rows(rows, self.in_channels, self.kernel, self.bits, self.signed).sum(2)
        return sums.t().contiguous().view(self.in_channels, *self.kernel).int()

    def fake(self) -> Tensor:
        """Shape rule of ``reference``."""
        return self.positions.new_empty((self.in_channels, *self.kernel))

    def compute(self) -> te.Tensor:
        """The loop nest: count the ones of every row, masks included."""
        panels, words, _ = (int(d) for d in self.positions.shape)
        taps, channels = self.kernel[0] * self.kernel[1], levels.plane_channels(self.in_channels)
        word = te.reduce_axis((0, words), "word")
        counts = te.compute(
            (panels, PANEL),
            lambda p, j: te.sum(popcount(self.positions[p, word, j]), axis=word),
            name="level_sums_counts",
        )

        def total(i: Any, kh: Any, kw: Any) -> Any:
            tap = kh * self.kernel[1] + kw
            found: Any = 0
            for p in range(self.bits):
                row = (tap * self.bits + p) * channels + i
                found = found + (counts[row // PANEL, row % PANEL] << p)
            mask = taps * self.bits * channels + tap
            masked = counts[mask // PANEL, mask % PANEL]
            return 2 * found - levels.largest_code(self.bits) * masked if self.signed else found

        return te.compute((self.in_channels, *self.kernel), total, name="level_sums")

    def cost(self) -> Cost:
        """The cost: one read of the rows."""
        return Cost(bytes_moved=tensor_bytes(self.positions) + 4 * self.in_channels * self.kernel[0] * self.kernel[1])

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The rows of ``level_weight_grad``'s samples."""
        for _, *arguments in LevelWeightGrad.sample_inputs():
            yield tuple(arguments)

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: count the ones of every row, masks included."""
        taps = onnx_taps(op)
        values = op("Mul", taps, op.reshape(op.integer("row_channels"), 1))
        counts = op.reshape(op.sum(table(op, self.positions, ONES, "int32"), 1, 3), 1, -1)
        masks = op.front(op.back(counts, values, 1), taps, 1)
        sums = op("Squeeze", onnx_levels(op, op.front(counts, values, 1), masks, taps), op.constant([0], "int64"))
        channels = op.reshape(op.integer("in_channels"), 1)
        return op.reshape(op("Transpose", sums, perm=[1, 0]), channels, op.integers("kernel"))

    def onnx_attributes(self) -> Attributes:
        """The attributes in ONNX: sizes, and how sums of levels come of counts."""
        return onnx_level_attributes(self.in_channels, self.kernel, self.bits, self.signed)
