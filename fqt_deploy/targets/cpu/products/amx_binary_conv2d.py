"""1-bit convolution in tile registers: signs as bytes, and bytes of zero around the image."""

from __future__ import annotations

from typing import Any, ClassVar

from tvm import tirx

from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.amx_convolution import tile_convolution
from fqt_deploy.targets.cpu.products.amx_convolution_cut import TileConvolution
from fqt_deploy.targets.cpu.products.amx_tiles import SIGNED_ROWS, look_up, neighbours, row_indices, signs_table
from fqt_deploy.targets.cpu.products.register_tile import arguments_of


class AmxBinaryConv2dRule:
    """Takes ``binary_conv2d`` of several taps, of multiples of 64 input and 32 output channels."""

    ops: ClassVar[frozenset[str]] = frozenset({"binary_conv2d"})

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """A convolution of signed bytes; padding costs nothing else."""
        arguments = arguments_of(function)
        if arguments is None or not features.has_amx:
            return None
        _, _, channels, outputs, kernel, stride, padding = arguments
        operand = tuple(int(d) for d in function.params[0].shape)
        result = function.params[-1]

        def signs(x: Any, n: Any, y: Any, z: Any, pair: Any) -> Any:
            return look_up(signs_table(), row_indices(neighbours(x[n, y, z, 2 * pair], x[n, y, z, 2 * pair + 1])))

        return tile_convolution(
            TileConvolution(
                samples=operand[0],
                source_hw=[*operand[1:3]],
                depth=channels,
                output_hw=[int(d) for d in result.shape[1:3]],
                columns=outputs,
                kernel=kernel,
                stride=stride,
                spread=[1, 1],
                border=padding,
                flipped=False,
                instruction=SIGNED_ROWS,
                operand=operand,
                row=signs,
                dtype=str(result.dtype),
            )
        )
