"""Both sides of a product of bits, and how a block of threads divides the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from fqt_deploy.targets.cuda.kernel_builder import WARP


@dataclass(frozen=True)
class Operand:
    """One side of the product: ``rows x planes`` strings of bits.

    Attributes:
        rows: rows, or columns of the result.
        planes: bit-planes of each; 1 on the right.
        chunk: words that lie side by side, aligned: consecutive ones of a row, or the same one of consecutive rows.
        word_major: whether a chunk goes along rows.
        source: (row, plane, word) -> whether it exists (or True), buffer, indices of the first word of a chunk.
    """

    rows: int
    planes: int
    chunk: int
    word_major: bool
    source: Callable[[Any, Any, Any], tuple[Any, tirx.Buffer, list[Any]]]


@dataclass(frozen=True)
class Tile:
    """The division of a block's part of the result among its threads.

    Attributes:
        warps_down: warps along rows.
        warps_across: warps along columns.
        fragments_down: fragments of 16 rows of one warp, planes included.
        fragments_across: fragments of 8 columns of one warp.
        cost: time of one element of a large tile of this kind, relative to the best.
    """

    warps_down: int
    warps_across: int
    fragments_down: int
    fragments_across: int
    cost: float

    @property
    def threads(self) -> int:
        """Number of threads in the block."""
        return self.warps_down * self.warps_across * WARP

    @property
    def height(self) -> int:
        """Number of rows of the block, planes counted."""
        return self.warps_down * self.fragments_down * 16

    @property
    def width(self) -> int:
        """Number of columns of the block."""
        return self.warps_across * self.fragments_across * 8

    def warp(self, thread: Any) -> tuple[Any, Any]:
        """Place of the thread's warp along rows and columns."""
        warp = thread // WARP
        return warp // self.warps_across, warp % self.warps_across
