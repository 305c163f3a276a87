"""What the convolutions by byte shuffles have in common, whichever way they go."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fqt_deploy.targets.cpu.nibble_table import ByteShuffle
from fqt_deploy.targets.tuning_log import Tile


@dataclass(frozen=True, kw_only=True)
class ShuffledConvolution:
    """A convolution whose columns look up bytes, and how it is cut into jobs.

    Attributes:
        samples, words: number of samples, words of bits of a position.
        kernel, stride, padding: of the forward convolution.
        is_flat: positions are taken one after another, whatever image they belong to: a product of matrices.
        job: rows and columns of positions of one job.
        shuffle: the processor's vectors.
        tile: at most so many registers of columns in a group, and so many positions (or pairs of them) in a run.
    """

    samples: int
    words: int
    kernel: list[int]
    stride: list[int]
    padding: list[int]
    is_flat: bool
    job: list[int]
    shuffle: ByteShuffle
    tile: Tile

    @property
    def taps(self) -> int:
        """Of the kernel."""
        return self.kernel[0] * self.kernel[1]


def distinct_tiles(cuts: Iterable[Any]) -> tuple[Tile, ...]:
    """The tiles of ``cuts``, one for each group and run that they lead to; of what no rule takes (None), none."""
    found: dict[tuple[int, int], Tile] = {}
    for cut in cuts:
        if cut is not None:
            found.setdefault((cut.group, cut.run), cut.tile)
    return tuple(found.values())
