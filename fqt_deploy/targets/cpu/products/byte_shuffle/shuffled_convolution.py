"""Common parts of the convolutions by byte shuffles, whichever way they go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.byte_shuffle.nibble_table import ByteShuffle
from fqt_deploy.targets.cpu.products.form import BYTE_SHUFFLE
from fqt_deploy.targets.cpu.register_tile import largest_divisor
from fqt_deploy.targets.products import Extents, PackedConvolution
from fqt_deploy.targets.tuning_log import Tile

Product = TypeVar("Product", bound=PackedConvolution)

JOB_POSITIONS = 64
"""Number of positions of a job where rows of an image have no meaning: one tap. The last job may have fewer."""


@dataclass(frozen=True)
class ShuffledConvolution(ABC, Generic[Product]):
    """A convolution whose columns look up bytes, and how it is cut into jobs.

    Attributes:
        product: what is computed.
        job: rows and columns of positions of one job; the last one of a flat product may have fewer columns.
        shuffle: the processor's vectors.
        tile: upper bounds: so many registers of columns in a group, and so many positions (or pairs of them) in a run.
    """

    product: Product
    job: Extents
    shuffle: ByteShuffle
    tile: Tile

    @property
    def is_flat(self) -> bool:
        """Whether positions are taken one after another, whatever image they belong to: a product of matrices."""
        return self.product.is_pointwise

    @property
    def jobs(self) -> int:
        """Number of independent jobs."""
        rows, columns = self.result
        return -(-self.product.samples * rows * columns // (self.job[0] * self.job[1]))

    @property
    @abstractmethod
    def result(self) -> Extents:
        """Rows and columns of the result."""

    @property
    @abstractmethod
    def turns(self) -> int:
        """Number of positions in a job, or of pairs of positions, that read a block of the weight in turn."""

    def columns_of(self, index: Any) -> Any:
        """Number of columns of a job."""
        positions = self.product.samples * self.result[0] * self.result[1]
        if positions % (self.job[0] * self.job[1]) == 0:
            return self.job[1]
        return T.min(self.job[1], positions - index * self.job[1])

    @abstractmethod
    def turns_of(self, index: Any) -> Any:
        """Number of turns of a job."""

    @property
    def run(self) -> int:
        """Number of turns that read a block of the weight while it is in the first-level cache."""
        return min(self.turns, self.tile[1])

    @property
    def runs(self) -> int:
        """Number of runs of a job; those of the last job may be shorter, or empty."""
        return -(-self.turns // self.run)

    def run_length(self, index: Any, run: Any) -> Any:
        """Number of turns of a run: the last one may have fewer."""
        turns = self.turns_of(index)
        if isinstance(turns, int) and turns % self.run == 0:
            return self.run
        return T.max(0, T.min(self.run, turns - run * self.run))

    @property
    def vectors(self) -> int:
        """Number of registers that all columns take."""
        return self.product.columns // self.shuffle.width

    @property
    def group(self) -> int:
        """Number of registers of columns that one table is looked up for: their indices are operands in memory."""
        return largest_divisor(self.vectors, self.tile[0])


def job_extents(product: PackedConvolution, band: int, width: int) -> Extents:
    """Rows and columns of a job: some positions of a product of matrices, else a band of an image so wide."""
    return (1, min(product.positions, JOB_POSITIONS)) if product.is_pointwise else (band, width)


class ShuffleForm(ABC, Generic[Product]):
    """The byte-shuffle form of a convolution: forward, or of the activation gradient.

    Attributes:
        choices: tiles worth measuring; the first is taken where nothing was measured.
    """

    name: ClassVar[str] = BYTE_SHUFFLE
    choices: ClassVar[tuple[Tile, ...]]

    @abstractmethod
    def cut(self, product: Product, tile: Tile, features: CpuFeatures) -> ShuffledConvolution[Product]:
        """The convolution and how it is cut, with ``group`` and ``run`` of at most ``tile``."""

    @abstractmethod
    def kernel(self, product: Product, tile: Tile, features: CpuFeatures) -> tirx.PrimFunc:
        """The kernel: it builds the tables and the indices of the weight, then runs the jobs in parallel."""

    def tiles(self, product: Product, features: CpuFeatures) -> tuple[Tile, ...]:
        """The choices that lead to different groups and runs."""
        found: dict[tuple[int, int], Tile] = {}
        for tile in self.choices:
            cut = self.cut(product, tile, features)
            found.setdefault((cut.group, cut.run), tile)
        return tuple(found.values())
