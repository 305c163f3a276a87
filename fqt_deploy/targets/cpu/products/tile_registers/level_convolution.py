"""Convolution of levels in tile registers: levels as bytes, and bytes of zero around the image."""

from __future__ import annotations

from typing import Any

from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.border_signs import BorderSigns
from fqt_deploy.targets.cpu.products.tile_registers.byte_convolution import TileForm
from fqt_deploy.targets.cpu.products.tile_registers.byte_convolution_cut import ByteConvolution
from fqt_deploy.targets.cpu.products.tile_registers.registers import (
    MAXIMUM_BITS,
    SIGNED_ROWS,
    UNSIGNED_ROWS,
    neighbours,
    row_of_codes,
    signed_levels,
)
from fqt_deploy.targets.products import LevelConvolution

BYTE_LEVELS = 7
"""The widest codes whose levels, with signs, fit a byte."""


class TileLevelConvolution(TileForm[LevelConvolution]):
    """A convolution of bytes, a multiple of 64 deep, with pairs of panels of columns."""

    takes_matrices = True

    def accepts(self, product: LevelConvolution, features: CpuFeatures) -> bool:
        """Whether codes fit into a byte, the processor has tile registers, and their tiles are filled."""
        return product.bits <= MAXIMUM_BITS and super().accepts(product, features)

    def expanded(self, product: LevelConvolution) -> ByteConvolution:
        """The product as a convolution of bytes: the levels and, in the padding, 0.

        Levels of 8 bits with signs do not fit a byte. There bytes are codes, and constants take off what is theirs.
        """
        signed = product.signed and product.bits <= BYTE_LEVELS

        def levels(planes: Any, n: Any, y: Any, z: Any, pair: Any) -> Any:
            codes = row_of_codes(
                [
                    neighbours(planes[n, y, z, p, 2 * pair], planes[n, y, z, p, 2 * pair + 1])
                    for p in range(product.bits)
                ]
            )
            return signed_levels(codes, product.largest_code) if signed else codes

        return ByteConvolution(
            product=product,
            source_hw=product.image,
            output_hw=product.output,
            stride=product.stride,
            spread=(1, 1),
            border=product.padding,
            flipped=False,
            instruction=SIGNED_ROWS if signed else UNSIGNED_ROWS,
            operand=(product.samples, *product.image, product.bits, product.words),
            row=levels,
            dtype=product.dtype,
            borders=BorderSigns(product) if product.signed and not signed else None,
        )
