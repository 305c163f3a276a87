"""What the convolutions by byte shuffles have in common, whichever way they go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from tvm import tirx

from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.nibble_table import ByteShuffle
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


class ShuffleRule(ABC):
    """A schedule rule for one of these convolutions, which can be tuned.

    Attributes:
        choices: tiles worth measuring; the first is taken where nothing was measured.
    """

    ops: ClassVar[frozenset[str]]
    choices: ClassVar[tuple[Tile, ...]]

    @abstractmethod
    def cut(self, function: tirx.PrimFunc, features: CpuFeatures, tile: Tile) -> Any:
        """The convolution and how it is cut, with ``group`` and ``run`` of at most ``tile``; None: not mine."""

    @abstractmethod
    def product(self, cut: Any) -> tirx.PrimFunc:
        """The kernel."""

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures, tile: Tile | None = None) -> tirx.PrimFunc | None:
        """A hand-written loop nest, with ``tile`` or the first of ``choices``."""
        cut = self.cut(function, features, tile or self.choices[0])
        return None if cut is None else self.product(cut)

    def tiles(self, function: tirx.PrimFunc, features: CpuFeatures) -> tuple[Tile, ...]:
        """Choices that lead to different groups and runs."""
        found: dict[tuple[int, int], Tile] = {}
        for tile in self.choices:
            cut = self.cut(function, features, tile)
            if cut is not None:
                found.setdefault((cut.group, cut.run), tile)
        return tuple(found.values())
