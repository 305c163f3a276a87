"""``fqt::bitplane_weight_grad``: weight-gradient product of input signs and gradient bit-planes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te

from fqt_deploy.ops.packed_words import (
    PANEL,
    from_panels,
    pack_last_axis,
    panel_count,
    popcount,
    to_panels,
    unpack_last_axis,
)
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(planes: Tensor, positions: Tensor, in_channels: int, taps: int) -> Tensor:
    """Sum of code times input sign over all positions where the tap is inside the image (algorithm, section 3).

    Args:
        planes: [W, B, K] int32: word w, bit k: bit-plane p of the code of position 32 w + k, for each kept channel.
        positions: [ceil((T * I + T) / 16), W, 16] int32, see ``pack_positions``.
        in_channels: I.
        taps: T.

    Returns:
        [K, T, I] int32.
    """
    words, bits, kept = planes.shape
    codes = unpack_last_axis(planes.permute(1, 2, 0), words * 32)
    codes = (codes << torch.arange(bits).view(-1, 1, 1)).sum(0).double()
    rows = unpack_last_axis(from_panels(positions, taps * (in_channels + 1)), words * 32).double()
    values = rows[: taps * in_channels].view(taps, in_channels, -1)
    masks = rows[taps * in_channels :].view(taps, 1, -1)
    signs = (2 * values - masks).flatten(0, 1)
    return (codes @ signs.t()).view(kept, taps, in_channels).to(torch.int32)


def fake(planes: Tensor, positions: Tensor, in_channels: int, taps: int) -> Tensor:
    """Shape rule of ``reference``."""
    if tuple(positions.shape) != (panel_count(taps * (in_channels + 1)), planes.shape[0], PANEL):
        raise ValueError(f"planes {tuple(planes.shape)} and positions {tuple(positions.shape)} do not match")
    return planes.new_empty((planes.shape[2], taps, in_channels))


def compute(planes: te.Tensor, positions: te.Tensor, in_channels: int, taps: int) -> te.Tensor:
    """Count shared ones for every row, masks included; a sign sum is twice its count minus the mask's."""
    words, bits, kept = (int(d) for d in planes.shape)
    rows = taps * (in_channels + 1)
    word, plane = te.reduce_axis((0, words), "word"), te.reduce_axis((0, bits), "plane")
    counts = te.compute(
        (kept, rows),
        lambda c, r: te.sum(
            popcount(planes[word, plane, c] & positions[r // PANEL, word, r % PANEL]) << plane, axis=[word, plane]
        ),
        name="bitplane_weight_grad_counts",
    )
    return te.compute(
        (kept, taps, in_channels),
        lambda c, t, i: 2 * counts[c, t * in_channels + i] - counts[c, taps * in_channels + t],
        name="bitplane_weight_grad",
    )


def cost(planes: Tensor, positions: Tensor, in_channels: int, taps: int) -> Cost:
    """Two bit operations a multiply-accumulate of one plane."""
    words, bits, kept = planes.shape
    work = 2 * 32 * words * bits * kept * taps * in_channels
    return Cost(bit_ops=work, bytes_moved=tensor_bytes(planes, positions) + 4 * kept * taps * in_channels)


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Full and partial panels, one word, one channel."""
    g = torch.Generator().manual_seed(0)
    for words, bits, kept, channels, taps in ((8, 4, 16, 32, 9), (5, 2, 7, 33, 4), (1, 1, 1, 5, 1), (20, 8, 24, 16, 1)):
        planes = pack_last_axis(torch.randint(0, 2, (words, bits, kept, 32), generator=g) > 0)[..., 0].contiguous()
        values = torch.randint(0, 2, (taps, channels, words * 32), generator=g)
        masks = torch.randint(0, 2, (taps, 1, words * 32), generator=g)
        rows = torch.cat([(values * masks).flatten(0, 1), masks[:, 0]])
        yield planes, to_panels(pack_last_axis(rows > 0)), channels, taps


bitplane_weight_grad = OpSpec(
    "bitplane_weight_grad", OpKind.PRODUCT, reference, fake, compute, cost, sample_inputs
).register()
