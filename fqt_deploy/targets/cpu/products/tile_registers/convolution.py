"""1-bit convolution in tile registers: signs as bytes, and bytes of zero around the image."""

from __future__ import annotations

from typing import Any

from fqt_deploy.targets.cpu.products.tile_registers.byte_convolution import TileForm
from fqt_deploy.targets.cpu.products.tile_registers.byte_convolution_cut import ByteConvolution
from fqt_deploy.targets.cpu.products.tile_registers.registers import (
    SIGNED_ROWS,
    look_up,
    neighbours,
    row_indices,
    signs_table,
)
from fqt_deploy.targets.products import BitConvolution


class TileConvolution(TileForm[BitConvolution]):
    """A convolution of signed bytes, of several taps, a multiple of 64 deep, with pairs of panels of columns."""

    takes_matrices = False

    def expanded(self, product: BitConvolution) -> ByteConvolution:
        """The product as a convolution of bytes 1, -1 and, in the padding, 0; padding then costs nothing else."""

        def signs(x: Any, n: Any, y: Any, z: Any, pair: Any) -> Any:
            return look_up(signs_table(), row_indices(neighbours(x[n, y, z, 2 * pair], x[n, y, z, 2 * pair + 1])))

        return ByteConvolution(
            product=product,
            source_hw=product.image,
            output_hw=product.output,
            stride=product.stride,
            spread=(1, 1),
            border=product.padding,
            flipped=False,
            instruction=SIGNED_ROWS,
            operand=(product.samples, *product.image, product.words),
            row=signs,
            dtype=product.dtype,
        )
