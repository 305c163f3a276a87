"""``fqt::position_sums``: sum of the input signs that each weight meets; the zero point's share of wgrad."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te
from fqt_deploy.ops.lib.onnx_bits import ONES, table
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.lib.packed_words import PANEL, from_panels, popcount, unpack_last_axis
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.products import bitplane_weight_grad
from fqt_deploy.ops.products.bitplane_weight_grad import BitplaneWeightGrad
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


@define(kind=Kind.PRODUCT, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class PositionSums(FqtOp):
    """Sum over all positions of the sign at each tap and channel; padded taps count 0.

    Attributes:
        positions: [ceil((T * I + T) / 16), W, 16] int32, see ``pack_positions``.
        in_channels: I.
        kernel: KH, KW, with T = KH * KW.

    Returns:
        [I, KH, KW] int32, laid out like the weight of one output channel.
    """

    positions: Operand
    in_channels: int
    kernel: list[int]

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        taps = self.kernel[0] * self.kernel[1]
        rows = from_panels(self.positions, taps * (self.in_channels + 1))
        counts = unpack_last_axis(rows, rows.shape[1] * 32).sum(1)
        values = counts[: taps * self.in_channels].view(taps, self.in_channels)
        sums = 2 * values - counts[taps * self.in_channels :].view(taps, 1)
        return sums.t().contiguous().view(self.in_channels, *self.kernel).int()

    def fake(self) -> Tensor:
        """Shape rule of ``reference``."""
        return self.positions.new_empty((self.in_channels, *self.kernel))

    def compute(self) -> te.Tensor:
        """The loop nest: count the ones of every row, masks included."""
        panels, words, _ = (int(d) for d in self.positions.shape)
        word = te.reduce_axis((0, words), "word")
        counts = te.compute(
            (panels, PANEL),
            lambda p, j: te.sum(popcount(self.positions[p, word, j]), axis=word),
            name="position_sums_counts",
        )

        def total(i: Any, kh: Any, kw: Any) -> Any:
            tap = kh * self.kernel[1] + kw
            value, mask = tap * self.in_channels + i, self.kernel[0] * self.kernel[1] * self.in_channels + tap
            return 2 * counts[value // PANEL, value % PANEL] - counts[mask // PANEL, mask % PANEL]

        return te.compute((self.in_channels, *self.kernel), total, name="position_sums")

    def cost(self) -> Cost:
        """The cost: one read of the rows."""
        return Cost(bytes_moved=tensor_bytes(self.positions) + 4 * self.in_channels * self.kernel[0] * self.kernel[1])

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The rows of ``bitplane_weight_grad``'s samples."""
        for _, positions, channels, kernel in BitplaneWeightGrad.sample_inputs():
            yield positions, channels, kernel

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: count the ones of every row, masks included."""
        taps = bitplane_weight_grad.onnx_taps(op)
        channels = op.reshape(op.integer("in_channels"), 1)
        counts = op.reshape(op.sum(table(op, self.positions, ONES, "int32"), 1, 3), -1)
        product = op("Mul", taps, channels)
        values = op.reshape(op.front(counts, product, 0), taps, channels)
        masks = op.reshape(op.front(op.back(counts, product, 0), taps, 0), -1, 1)
        sums = op("Sub", op("Mul", values, op.constant(2, "int32")), masks)  # [T, I]
        return op.reshape(op("Transpose", sums, perm=[1, 0]), channels, op.integers("kernel"))
