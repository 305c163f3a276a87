"""Register tiles of fp32 matrix products: the one micro-kernel of batched products, linear layers and attention.

A tile holds a few rows times a few vectors of sixteen columns in registers over all its terms. For each term it reads
one contiguous run of the right operand, which lies in panels, and one number of each row of the left operand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.features import CpuFeatures

LANES = 16
"""Number of columns of a vector; narrower machines split it."""
ROWS = 6
"""Number of rows of a tile: with four vectors of columns, 24 accumulators for ten operands."""
MOST_VECTORS = 4
"""Upper bound of the vectors of columns of a tile."""

Element = Callable[..., Any]
"""An element or a vector of an operand, by the indices that the place of use gives it."""


@dataclass(frozen=True)
class TileShape:
    """The extents of a register tile.

    Attributes:
        rows: rows of the result.
        vectors: vectors of sixteen columns.
    """

    rows: int
    vectors: int

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.vectors * LANES

    def edge(self, columns: int) -> int:
        """Number of vectors of the last, narrower tile of ``columns`` columns; 0 where whole tiles cover them."""
        return ceil_div(columns, LANES) % self.vectors


def tile_shape(features: CpuFeatures) -> TileShape:
    """The tile whose accumulators take up to three quarters of the registers: the rest holds operands."""
    accumulators = max(1, features.vector_registers * features.vector_bits // (LANES * 32) * 3 // 4)
    vectors = max(1, min(MOST_VECTORS, accumulators // ROWS))
    return TileShape(min(ROWS, accumulators // vectors), vectors)


def ceil_div(extent: int, size: int) -> int:
    """How many pieces of ``size`` cover ``extent``."""
    return -(-extent // size)


def round_up(extent: int, size: int) -> int:
    """The multiple of ``size`` that ``extent`` fills."""
    return ceil_div(extent, size) * size


@script.macro
def clear(total: Any, rows: int, vectors: int) -> None:
    """Begin the sums ``total``, float32 [rows, vectors, 16], with zero."""
    for r in T.unroll(rows):
        for v in T.unroll(vectors):
            total[r, v, T.ramp(0, 1, LANES)] = T.broadcast(T.float32(0), LANES)


@script.macro
def add_products(total: Any, rows: int, vectors: int, terms: Any, left: Element, right: Element) -> None:
    """Add the products of ``terms`` terms to a tile.

    Args:
        total: float32 [rows, vectors, 16].
        rows: rows of the tile.
        vectors: vectors of columns of the tile.
        terms: a constant or an expression.
        left: number of a row, by row and term: float32.
        right: columns of a term, by term and vector: float32x16.
    """
    for k in T.serial(terms):
        for r in T.unroll(rows):
            for v in T.unroll(vectors):
                total[r, v, T.ramp(0, 1, LANES)] = total[r, v, T.ramp(0, 1, LANES)] + T.broadcast(
                    left(r, k), LANES
                ) * right(k, v)
