"""Shape arithmetic of convolutions, shared by the product ops."""

from __future__ import annotations

from typing import Any

from fqt_deploy.ops.lib.late_modules import tirx


def output_extent(extent: int, kernel: int, stride: int, padding: int) -> int:
    """Output positions along one axis; ``ValueError`` if there is none."""
    positions = (int(extent) + 2 * padding - kernel) // stride + 1
    if positions < 1:
        raise ValueError(f"a kernel of {kernel} does not fit an extent of {extent} with padding {padding}")
    return positions


def output_extents(hw: list[int], kernel: list[int], stride: list[int], padding: list[int]) -> list[int]:
    """Output height and width."""
    return [output_extent(*axis) for axis in zip(hw, kernel, stride, padding, strict=True)]


def input_position(
    oh: Any, ow: Any, kh: Any, kw: Any, hw: list[int], stride: list[int], padding: list[int]
) -> tuple[Any, Any, Any]:
    """Whether tap (kh, kw) of output (oh, ow) lies in the image, and where."""
    h, w = oh * stride[0] + kh - padding[0], ow * stride[1] + kw - padding[1]
    if padding == [0, 0]:
        return tirx.const(True, "bool"), h, w
    return tirx.all(h >= 0, h < hw[0], w >= 0, w < hw[1]), h, w


def output_position(
    h: Any, w: Any, kh: Any, kw: Any, output_hw: list[int], stride: list[int], padding: list[int]
) -> tuple[Any, Any, Any]:
    """Whether some output reads image position (h, w) through tap (kh, kw), and which."""
    conditions, positions = [], []
    for at, tap, extent, step, pad in zip((h, w), (kh, kw), output_hw, stride, padding, strict=True):
        shifted = at + pad - tap
        position = shifted if step == 1 else tirx.floordiv(shifted, step)
        conditions += [position >= 0, position < extent]
        if step != 1:
            conditions.append(tirx.floormod(shifted, step).equal(0))
        positions.append(position)
    return tirx.all(*conditions), positions[0], positions[1]
