"""A form of the 1-bit products: one way to compute them, on processors that have the instructions for it."""

from __future__ import annotations

from typing import ClassVar, Protocol, TypeVar

from tvm import tirx

from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.products import BitProduct
from fqt_deploy.targets.tuning_log import Tile

POPCOUNT = "popcount"
TABLE_LOOKUP = "table-lookup"
BYTE_PRODUCT = "byte-product"
BYTE_SHUFFLE = "byte-shuffle"
TILE_REGISTERS = "tile-registers"

NO_CHOICE: tuple[Tile, ...] = ((),)
"""The tiles of a kernel whose form leaves nothing to choose."""

Product = TypeVar("Product", bound=BitProduct, contravariant=True)


class Form(Protocol[Product]):
    """One way to compute a kind of product; all forms of a product give the same integers.

    Attributes:
        name: says which instructions it is made of. Tuning logs are keyed by it: it stays when a class is renamed.
    """

    name: ClassVar[str]

    def accepts(self, product: Product, features: CpuFeatures) -> bool:
        """Whether the form can compute ``product`` on the processor, and pays there."""

    def tiles(self, product: Product, features: CpuFeatures) -> tuple[Tile, ...]:
        """Tiles worth measuring for an accepted product, the form's own choice first; each gives upper bounds."""

    def kernel(self, product: Product, tile: Tile, features: CpuFeatures) -> tirx.PrimFunc:
        """The loop nest of an accepted product, with extents of at most ``tile``."""
