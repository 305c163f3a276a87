"""Activation-gradient product in tile registers: codes as bytes, with the kernel turned around."""

from __future__ import annotations

from typing import Any

from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.tile_registers.byte_convolution import TileForm
from fqt_deploy.targets.cpu.products.tile_registers.byte_convolution_cut import ByteConvolution
from fqt_deploy.targets.cpu.products.tile_registers.registers import (
    MAXIMUM_BITS,
    UNSIGNED_ROWS,
    neighbours,
    row_of_codes,
)
from fqt_deploy.targets.products import BitInputGradient


class TileInputGradient(TileForm[BitInputGradient]):
    """A convolution of unsigned bytes, a multiple of 64 deep, with pairs of panels of columns."""

    takes_matrices = True

    def accepts(self, product: BitInputGradient, features: CpuFeatures) -> bool:
        """Whether codes fit into a byte, the processor has tile registers, and their tiles are filled."""
        return product.bits <= MAXIMUM_BITS and super().accepts(product, features)

    def expanded(self, product: BitInputGradient) -> ByteConvolution:
        """Gradients between strides and in padding are bytes of zero."""
        bits = product.bits

        def codes(planes: Any, n: Any, y: Any, z: Any, pair: Any) -> Any:
            return row_of_codes(
                [neighbours(planes[n, y, z, p, 2 * pair], planes[n, y, z, p, 2 * pair + 1]) for p in range(bits)]
            )

        return ByteConvolution(
            product=product,
            source_hw=product.output,
            output_hw=product.image,
            stride=(1, 1),
            spread=product.stride,
            border=product.border,
            flipped=True,
            instruction=UNSIGNED_ROWS,
            operand=(product.samples, *product.output, bits, product.words),
            row=codes,
            dtype="int32",
        )
