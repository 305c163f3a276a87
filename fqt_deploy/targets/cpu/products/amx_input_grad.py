"""Activation-gradient product in tile registers: codes as bytes, with the kernel turned around."""

from __future__ import annotations

from typing import Any, ClassVar

from tvm import tirx

from fqt_deploy.ops.lib.packed_words import WORD
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.amx_convolution import tile_convolution
from fqt_deploy.targets.cpu.products.amx_convolution_cut import TileConvolution
from fqt_deploy.targets.cpu.products.amx_tiles import MAXIMUM_BITS, UNSIGNED_ROWS, neighbours, row_of_codes
from fqt_deploy.targets.cpu.products.register_tile import arguments_of


class AmxInputGradRule:
    """Takes ``bitplane_conv2d_input_grad`` of several taps, of multiples of 64 output and 32 input channels."""

    ops: ClassVar[frozenset[str]] = frozenset({"bitplane_conv2d_input_grad"})

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """A convolution of unsigned bytes; gradients between strides and in padding are bytes of zero."""
        arguments = arguments_of(function)
        samples, oh, ow, bits, words = (int(d) for d in function.params[0].shape)
        if arguments is None or not features.has_amx or bits > MAXIMUM_BITS:
            return None
        _, _, channels, _, hw, kernel, stride, padding = arguments

        def codes(planes: Any, n: Any, y: Any, z: Any, pair: Any) -> Any:
            return row_of_codes(
                [neighbours(planes[n, y, z, p, 2 * pair], planes[n, y, z, p, 2 * pair + 1]) for p in range(bits)]
            )

        return tile_convolution(
            TileConvolution(
                samples=samples,
                source_hw=[oh, ow],
                depth=words * WORD,
                output_hw=hw,
                columns=channels,
                kernel=kernel,
                stride=[1, 1],
                spread=stride,
                border=[kernel[0] - 1 - padding[0], kernel[1] - 1 - padding[1]],
                flipped=True,
                instruction=UNSIGNED_ROWS,
                operand=(samples, oh, ow, bits, words),
                row=codes,
                dtype="int32",
            )
        )
