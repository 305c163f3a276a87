"""The schedule rule of the 1-bit products: the forms that each of them has, the best first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from tvm import tirx

from fqt_deploy.targets.base import TileChoice
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.byte_product.input_gradient import ByteInputGradient
from fqt_deploy.targets.cpu.products.byte_product.level_convolution import ByteLevelConvolution
from fqt_deploy.targets.cpu.products.byte_product.weight_gradient import ByteWeightGradient
from fqt_deploy.targets.cpu.products.byte_shuffle.convolution import ShuffleConvolution
from fqt_deploy.targets.cpu.products.byte_shuffle.input_gradient import ShuffleInputGradient
from fqt_deploy.targets.cpu.products.byte_shuffle.level_convolution import ShuffleLevelConvolution
from fqt_deploy.targets.cpu.products.byte_shuffle.weight_gradient import ShuffleWeightGradient
from fqt_deploy.targets.cpu.products.form import BYTE_PRODUCT, TILE_REGISTERS, Form
from fqt_deploy.targets.cpu.products.popcount.convolution import PopcountConvolution
from fqt_deploy.targets.cpu.products.popcount.input_gradient import PopcountInputGradient
from fqt_deploy.targets.cpu.products.popcount.level_convolution import PopcountLevelConvolution
from fqt_deploy.targets.cpu.products.popcount.weight_gradient import PopcountWeightGradient
from fqt_deploy.targets.cpu.products.table_lookup.input_gradient import TableInputGradient
from fqt_deploy.targets.cpu.products.table_lookup.level_convolution import TableLevelConvolution
from fqt_deploy.targets.cpu.products.table_lookup.weight_gradient import TableWeightGradient
from fqt_deploy.targets.cpu.products.tile_registers.convolution import TileConvolution
from fqt_deploy.targets.cpu.products.tile_registers.input_gradient import TileInputGradient
from fqt_deploy.targets.cpu.products.tile_registers.level_convolution import TileLevelConvolution
from fqt_deploy.targets.cpu.products.tile_registers.weight_gradient import TileWeightGradient
from fqt_deploy.targets.products import BitProduct, PackedConvolution, product_of
from fqt_deploy.targets.tuning_log import Tile

FORMS: Mapping[str, tuple[Form[Any], ...]] = {
    "binary_conv2d": (TileConvolution(), ByteLevelConvolution(), ShuffleConvolution(), PopcountConvolution()),
    "bitplane_conv2d_input_grad": (
        TileInputGradient(), ByteInputGradient(), TableInputGradient(), ShuffleInputGradient(),
        PopcountInputGradient(),
    ),
    "bitplane_weight_grad": (
        TileWeightGradient(), ByteWeightGradient(), TableWeightGradient(), ShuffleWeightGradient(),
        PopcountWeightGradient(),
    ),
    "level_conv2d": (
        TileLevelConvolution(), ByteLevelConvolution(), TableLevelConvolution(), ShuffleLevelConvolution(),
        PopcountLevelConvolution(),
    ),
    "level_weight_grad": (
        TileWeightGradient(), ByteWeightGradient(), TableWeightGradient(), ShuffleWeightGradient(),
        PopcountWeightGradient(),
    ),
}  # fmt: skip
"""Forms of a product by op; the first one that accepts the product computes it."""

OF_LEVELS = (TILE_REGISTERS, BYTE_PRODUCT)
"""Forms that take weights of several planes: they make bytes of levels. The others would read planes wrongly."""


class BitProductRule:
    """Takes the 1-bit products that some form accepts."""

    ops: ClassVar[frozenset[str]] = frozenset(FORMS)

    def choice(self, function: tirx.PrimFunc, features: CpuFeatures) -> TileChoice | None:
        """Returns the form that computes the product and its tiles worth measuring, or None if there is no form."""
        found = _formed(function, features)
        return None if found is None else TileChoice(found[1].name, found[1].tiles(found[0], features))

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures, tile: Tile | None = None) -> tirx.PrimFunc | None:
        """The kernel in that form, with ``tile`` or the form's own choice."""
        found = _formed(function, features)
        if found is None:
            return None
        product, form = found
        return form.kernel(product, form.tiles(product, features)[0] if tile is None else tile, features)


def _formed(function: tirx.PrimFunc, features: CpuFeatures) -> tuple[BitProduct, Form[Any]] | None:
    """The product and the form that it takes; None if there is none, or something was inlined into the product."""
    product = product_of(function)
    if product is None:
        return None
    forms = FORMS[str(function.attrs["fqt.op"])]
    if isinstance(product, PackedConvolution) and product.weight_planes > 1:
        forms = tuple(form for form in forms if form.name in OF_LEVELS)
    return next(((product, form) for form in forms if form.accepts(product, features)), None)
