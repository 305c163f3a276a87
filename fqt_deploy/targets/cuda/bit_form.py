"""Forms of the 1-bit products: where operands lie in shared memory, and how they are multiplied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from tvm import tirx

from fqt_deploy.targets.cuda.bit_operand import Operand, Tile
from fqt_deploy.targets.cuda.kernel_builder import as_int32, integer
from fqt_deploy.targets.cuda.shared_layout import SharedLayout


class BitForm(Protocol):
    """One way to multiply the bits that lie in shared memory."""

    @property
    def tiles(self) -> Mapping[int, tuple[Tile, ...]]:
        """Number of planes -> tiles to choose from."""

    @property
    def asynchronous(self) -> bool:
        """Whether copies to shared memory run beside the multiplication (``cp.async``)."""

    @property
    def differences(self) -> bool:
        """Whether the counts are of bits that differ, not of ones that are shared."""

    @property
    def merges_planes(self) -> bool:
        """Whether the planes of a row are weighed before the multiplication, not after it."""

    def layout(self, operand: Operand, height: int) -> SharedLayout:
        """The layout in shared memory of ``height`` rows of ``operand``, planes counted."""

    def publish(self) -> Any:
        """The statement of a thread between its copies and the barrier; None for nothing."""

    def multiply(
        self, tile: Tile, planes: int, sides: tuple[tirx.Buffer, tirx.Buffer], layouts: tuple[Any, Any], counts: Any,
        slot: Any, thread: Any,
    ) -> Any:  # fmt: skip
        """Add the products of one stage to ``counts`` [fragments down, fragments across, 4]."""

    def complete(self) -> Any:
        """Wait until the products are there; None where they already are."""

    def first_row(self, tile: Tile, planes: int, down: Any, group: int) -> Any:
        """Row, in the block, of the first of the 16 rows in the warp's group of fragments number ``group``."""


def weighted(form: BitForm, counts: tirx.Buffer, planes: int, group: int, j: int, r: int) -> Any:
    """A result of a group of fragments: the sum over planes p of ``2^p`` times its counts."""
    if form.merges_planes:
        return as_int32(counts[group, j, r])
    total: Any = integer(0)
    for plane in range(planes):
        total = total + (as_int32(counts[group * planes + plane, j, r]) << plane)
    return total
