"""``fqt::position_sums``: sum of the input signs that each weight meets; the zero point's share of wgrad."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from tvm import te

from fqt_deploy.ops.lib.onnx_bits import ONES, table
from fqt_deploy.ops.lib.onnx_body import Body, OnnxFunction
from fqt_deploy.ops.lib.packed_words import PANEL, from_panels, popcount, unpack_last_axis
from fqt_deploy.ops.products import bitplane_weight_grad
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(positions: Tensor, in_channels: int, kernel: list[int]) -> Tensor:
    """Sum over all positions of the sign at each tap and channel; padded taps count 0.

    Args:
        positions: [ceil((T * I + T) / 16), W, 16] int32, see ``pack_positions``.
        in_channels: I.
        kernel: KH, KW, with T = KH * KW.

    Returns:
        [I, KH, KW] int32, laid out like the weight of one output channel.
    """
    taps = kernel[0] * kernel[1]
    rows = from_panels(positions, taps * (in_channels + 1))
    counts = unpack_last_axis(rows, rows.shape[1] * 32).sum(1)
    values = counts[: taps * in_channels].view(taps, in_channels)
    sums = 2 * values - counts[taps * in_channels :].view(taps, 1)
    return sums.t().contiguous().view(in_channels, *kernel).int()


def fake(positions: Tensor, in_channels: int, kernel: list[int]) -> Tensor:
    """Shape rule of ``reference``."""
    return positions.new_empty((in_channels, *kernel))


def compute(positions: te.Tensor, in_channels: int, kernel: list[int]) -> te.Tensor:
    """Count the ones of every row, masks included."""
    panels, words, _ = (int(d) for d in positions.shape)
    word = te.reduce_axis((0, words), "word")
    counts = te.compute(
        (panels, PANEL), lambda p, j: te.sum(popcount(positions[p, word, j]), axis=word), name="position_sums_counts"
    )

    def total(i: Any, kh: Any, kw: Any) -> Any:
        tap = kh * kernel[1] + kw
        value, mask = tap * in_channels + i, kernel[0] * kernel[1] * in_channels + tap
        return 2 * counts[value // PANEL, value % PANEL] - counts[mask // PANEL, mask % PANEL]

    return te.compute((in_channels, *kernel), total, name="position_sums")


def cost(positions: Tensor, in_channels: int, kernel: list[int]) -> Cost:
    """One read of the rows."""
    return Cost(bytes_moved=tensor_bytes(positions) + 4 * in_channels * kernel[0] * kernel[1])


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """The rows of ``bitplane_weight_grad``'s samples."""
    for _, positions, channels, kernel in bitplane_weight_grad.sample_inputs():
        yield positions, channels, kernel


def onnx_body(op: Body, positions: str) -> str:
    """Count the ones of every row, masks included."""
    taps = bitplane_weight_grad.onnx_taps(op)
    channels = op.reshape(op.integer("in_channels"), 1)
    counts = op.reshape(op.sum(table(op, positions, ONES, "int32"), 1, 3), -1)
    product = op("Mul", taps, channels)
    values = op.reshape(op.front(counts, product, 0), taps, channels)
    masks = op.reshape(op.front(op.back(counts, product, 0), taps, 0), -1, 1)
    sums = op("Sub", op("Mul", values, op.constant(2, "int32")), masks)  # [T, I]
    return op.reshape(op("Transpose", sums, perm=[1, 0]), channels, op.integers("kernel"))


position_sums = OpSpec(
    "position_sums", OpKind.PRODUCT, reference, fake, compute, cost, sample_inputs, onnx=OnnxFunction(onnx_body)
).register()
