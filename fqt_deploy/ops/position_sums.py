"""``fqt::position_sums``: sum of the input signs that each weight meets; the zero point's share of wgrad."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from tvm import te

from fqt_deploy.ops import bitplane_weight_grad
from fqt_deploy.ops.packed_words import PANEL, from_panels, popcount, unpack_last_axis
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(positions: Tensor, in_channels: int, taps: int) -> Tensor:
    """Sum over all positions of the sign at each tap and channel; padded taps count 0.

    Args:
        positions: [ceil((T * I + T) / 16), W, 16] int32, see ``pack_positions``.
        in_channels: I.
        taps: T.

    Returns:
        [T, I] int32.
    """
    rows = from_panels(positions, taps * (in_channels + 1))
    counts = unpack_last_axis(rows, rows.shape[1] * 32).sum(1)
    values = counts[: taps * in_channels].view(taps, in_channels)
    return (2 * values - counts[taps * in_channels :].view(taps, 1)).int()


def fake(positions: Tensor, in_channels: int, taps: int) -> Tensor:
    """Shape rule of ``reference``."""
    return positions.new_empty((taps, in_channels))


def compute(positions: te.Tensor, in_channels: int, taps: int) -> te.Tensor:
    """Count the ones of every row, masks included."""
    panels, words, _ = (int(d) for d in positions.shape)
    word = te.reduce_axis((0, words), "word")
    counts = te.compute(
        (panels, PANEL), lambda p, j: te.sum(popcount(positions[p, word, j]), axis=word), name="position_sums_counts"
    )

    def total(t: Any, i: Any) -> Any:
        value, mask = t * in_channels + i, taps * in_channels + t
        return 2 * counts[value // PANEL, value % PANEL] - counts[mask // PANEL, mask % PANEL]

    return te.compute((taps, in_channels), total, name="position_sums")


def cost(positions: Tensor, in_channels: int, taps: int) -> Cost:
    """One read of the rows."""
    return Cost(bytes_moved=tensor_bytes(positions) + 4 * taps * in_channels)


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """The rows of ``bitplane_weight_grad``'s samples."""
    for _, positions, channels, taps in bitplane_weight_grad.sample_inputs():
        yield positions, channels, taps


position_sums = OpSpec("position_sums", OpKind.PRODUCT, reference, fake, compute, cost, sample_inputs).register()
