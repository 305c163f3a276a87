"""Statistics of batch normalization over all processes, in one message."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def exchange_statistics(
    rows: int, sums: Sequence[Tensor], moments: Sequence[Tensor], add_up: Callable[[Tensor], None]
) -> int:
    """Replace sums over rows, and moments of the rows, by those of the rows of all processes.

    Processes may have different numbers of rows: these are part of the message. It is in float64, in which the mean of
    squares less the square of the mean keeps the variance.

    Args:
        rows: of this process.
        sums: [C] float32 each; they become the sums of all times ``rows`` / rows of all: what divides them by ``rows``
            has the mean.
        moments: nothing, or a mean, a variance, and perhaps the variance divided by one row less; [C] float32.
        add_up: replaces a message, float64, by the sum over all processes, the same bits in each.

    Returns:
        Bytes of the message.
    """
    parts = [each.double() for each in sums]
    if moments:
        mean, variance = (moment.double() for moment in moments[:2])
        parts += [mean * rows, (variance + mean * mean) * rows]
    message = torch.cat([*parts, torch.tensor([float(rows)], dtype=torch.float64)])
    add_up(message)
    everywhere = float(message[-1])
    received = (message[:-1] / everywhere).view(len(parts), -1)
    for each, value in zip(sums, received, strict=False):
        each.copy_(value * rows)
    if moments:
        mean, square = received[len(sums) :]
        variance = (square - mean * mean).clamp_min(0)
        unbiased = variance * (everywhere / max(everywhere - 1, 1))
        for each, value in zip(moments, (mean, variance, unbiased), strict=False):
            each.copy_(value)
    return message.nbytes
