"""Geometry of convolutions with groups and dilation, over any number of spatial axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fqt_deploy.ops.lib.late_modules import tirx


@dataclass(frozen=True)
class ConvolutionAxes:
    """The spatial axes of a convolution; each attribute has one entry an axis.

    Attributes:
        kernel: taps.
        stride: positions of the image from one output to the next.
        padding: zeros on either side.
        dilation: positions of the image from one tap to the next.
    """

    kernel: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]

    def outputs(self, image: Sequence[int]) -> list[int]:
        """Output positions on each axis; ``ValueError`` if there is none."""
        found = []
        axes = zip(image, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        for extent, kernel, stride, padding, dilation in axes:
            positions = (int(extent) + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            if positions < 1:
                raise ValueError(
                    f"a kernel of {kernel} with dilation {dilation} does not fit an extent of {extent} "
                    f"with padding {padding}"
                )
            found.append(positions)
        return found

    def unread(self, image: Sequence[int], outputs: Sequence[int]) -> list[int]:
        """Positions behind the last one that an output reads, padding included: ONNX calls them output padding."""
        axes = zip(image, outputs, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return [
            int(extent) + 2 * padding - dilation * (kernel - 1) - 1 - (int(positions) - 1) * stride
            for extent, positions, kernel, stride, padding, dilation in axes
        ]

    def read(self, output: Sequence[Any], tap: Sequence[Any], image: Sequence[int]) -> tuple[Any, list[Any]]:
        """Whether a tap of an output position lies in the image, and where."""
        conditions, positions = [tirx.const(True, "bool")], []
        axes = zip(output, tap, image, self.stride, self.padding, self.dilation, strict=True)
        for out, k, extent, stride, padding, dilation in axes:
            at = out * stride + k * dilation - padding
            conditions += [at >= 0, at < extent] if padding else []
            positions.append(at)
        return tirx.all(*conditions), positions

    def reader(self, position: Sequence[Any], tap: Sequence[Any], outputs: Sequence[int]) -> tuple[Any, list[Any]]:
        """Whether some output reads a position of the image through a tap, and which."""
        conditions, found = [tirx.const(True, "bool")], []
        axes = zip(position, tap, outputs, self.stride, self.padding, self.dilation, strict=True)
        for at, k, extent, stride, padding, dilation in axes:
            shifted = at + padding - k * dilation
            out = shifted if stride == 1 else tirx.floordiv(shifted, stride)
            conditions += [out >= 0, out < extent]
            if stride != 1:
                conditions.append(tirx.floormod(shifted, stride).equal(0))
            found.append(out)
        return tirx.all(*conditions), found


def channels_first(rank: int) -> list[int]:
    """The permutation of [N, *spatial, C] with ``rank`` axes to [N, C, *spatial]."""
    return [0, rank - 1, *range(1, rank - 1)]


def channels_last(rank: int) -> list[int]:
    """The permutation of [N, C, *spatial] with ``rank`` axes to [N, *spatial, C]."""
    return [0, *range(2, rank), 1]
