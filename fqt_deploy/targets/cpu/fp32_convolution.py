"""fp32 convolutions: register tiles over zero-padded rows, in which a row of taps is one contiguous run.

A tile holds positions of several rows and images where one row is short: a panel of the weight, contiguous in memory, is
then read once for eight positions, whatever the size of the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

from tvm import te, tirx

from fqt_deploy.ops.packed_words import PANEL
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.register_tile import (
    arguments_of,
    largest_divisor,
    new_schedule,
    placeholders,
    schedule_helpers,
    schedule_padding,
)

_ROWS = 8
"""Positions in a tile: with two vectors of channels, sixteen accumulators for ten operands."""


class Fp32ConvolutionRule:
    """Takes ``conv2d`` and ``conv2d_input_grad`` with a multiple of 16 result channels."""

    ops: ClassVar[frozenset[str]] = frozenset({"conv2d", "conv2d_input_grad"})

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """The input gradient is a convolution of the spread-out gradient with the kernel turned around."""
        arguments = arguments_of(function)
        result_shape = [int(d) for d in function.params[-1].shape]
        if arguments is None or result_shape[3] % PANEL:
            return None
        image, w = placeholders(function)
        kernel = [int(d) for d in w.shape[2:]]
        if str(function.attrs["fqt.op"]) == "conv2d":
            stride, padding = arguments[2:]
            rows = padded_rows(image, [padding[0], padding[1]], "rows")

            def weight(kh: Any, kw: Any, c: Any, o: Any) -> Any:
                return w[o, c, kh, kw]
        else:
            _, _, _, spread, padding = arguments
            border = [kernel[0] - 1 - padding[0], kernel[1] - 1 - padding[1]]
            extent = [result_shape[1] + kernel[0] - 1, result_shape[2] + kernel[1] - 1]
            rows, stride = spread_rows(image, border, spread, extent), [1, 1]

            def weight(kh: Any, kw: Any, c: Any, o: Any) -> Any:
                return w[c, o, kernel[0] - 1 - kh, kernel[1] - 1 - kw]

        return _convolution(image, w, rows, weight, kernel, stride, result_shape, features.accumulators)


def _convolution(
    image: te.Tensor,
    w: te.Tensor,
    rows: te.Tensor,
    weight: Callable[..., Any],
    kernel: list[int],
    stride: list[int],
    result_shape: list[int],
    accumulators: int,
) -> tirx.PrimFunc:
    channels, outputs = int(image.shape[3]), result_shape[3]
    run = kernel[1] * channels
    tile = tile_extents(result_shape[:3], min(_ROWS, accumulators))
    vectors = largest_divisor(outputs // PANEL, max(1, accumulators // math.prod(tile)))
    width = vectors * PANEL
    panels = te.compute(
        (outputs // width, kernel[0], run, width),
        lambda p, kh, m, o: weight(kh, m // channels, m % channels, p * width + o),
        name="panels",
    )
    kh, m = te.reduce_axis((0, kernel[0]), "kh"), te.reduce_axis((0, run), "m")
    total = te.compute(
        result_shape,
        lambda n, y, z, o: te.sum(
            rows[n, y * stride[0] + kh, z * (stride[1] * channels) + m] * panels[o // width, kh, m, o % width],
            axis=[kh, m],
        ),
        name="total",
    )
    result = te.compute(result_shape, lambda *i: total[i], name="result")
    schedule = new_schedule([image, w, result])
    _schedule_tile(schedule, tile, width)
    schedule_padding(schedule, schedule.get_sblock("rows"))
    schedule_helpers(schedule, ("panels",))
    return schedule.mod["main"]


def tile_extents(extents: list[int], limit: int) -> list[int]:
    """Part of each axis in a tile of at most ``limit`` elements: of the innermost axes as much as fits."""
    tile: list[int] = []
    for extent in reversed(extents):
        tile.insert(0, largest_divisor(extent, max(1, limit // math.prod(tile))))
    return tile


def _schedule_tile(schedule: Any, tile: list[int], width: int) -> None:
    """Accumulate ``total`` in registers for a tile of samples, rows and columns of ``result`` times ``width`` channels."""
    total, result = schedule.get_sblock("total"), schedule.get_sblock("result")
    *axes, channel = schedule.get_loops(result)
    split = [schedule.split(axis, [None, size]) for axis, size in zip(axes, tile, strict=True)]
    outer, inner = [pair[0] for pair in split], [pair[1] for pair in split]
    panel, vector, lane = schedule.split(channel, [None, width // PANEL, PANEL])
    schedule.reorder(*outer, panel, *inner, vector, lane)
    schedule.compute_at(total, panel, preserve_unit_loops=True)
    loops = schedule.get_loops(total)[len(outer) + 1 :]
    positions, channels, reductions = loops[: len(tile)], loops[len(tile)], loops[len(tile) + 1 :]
    vectors, lanes = schedule.split(channels, [None, PANEL])
    schedule.reorder(*reductions, *positions, vectors, lanes)
    schedule.vectorize(lanes)
    schedule.vectorize(lane)
    for loop in (*positions, vectors, *inner, vector):
        schedule.unroll(loop)
    schedule.parallel(schedule.fuse(*outer))
    schedule.decompose_reduction(total, reductions[0])


def padded_rows(image: te.Tensor, padding: list[int], name: str) -> te.Tensor:
    """[N, H + 2p, (W + 2p) * C]: zeros around, columns and channels one axis."""
    n, height, width, channels = (int(d) for d in image.shape)

    def element(b: Any, h: Any, r: Any) -> Any:
        y, at = h - padding[0], r - padding[1] * channels
        inside = tirx.all(y >= 0, y < height, at >= 0, at < width * channels)
        return tirx.if_then_else(inside, image[b, y, at // channels, at % channels], tirx.const(0.0, "float32"))

    return te.compute((n, height + 2 * padding[0], (width + 2 * padding[1]) * channels), element, name=name)


def spread_rows(gradient: te.Tensor, border: list[int], stride: list[int], extent: list[int]) -> te.Tensor:
    """[N, H', W' * C]: the gradient ``stride`` apart behind ``border`` zeros."""
    n, oh, ow, channels = (int(d) for d in gradient.shape)

    def at(b: Any, h: Any, r: Any) -> Any:
        y, z = h - border[0], r // channels - border[1]
        aligned = tirx.all(tirx.floormod(y, stride[0]).equal(0), tirx.floormod(z, stride[1]).equal(0))
        y, z = tirx.floordiv(y, stride[0]), tirx.floordiv(z, stride[1])
        inside = tirx.all(aligned, y >= 0, y < oh, z >= 0, z < ow)
        return tirx.if_then_else(inside, gradient[b, y, z, r % channels], tirx.const(0.0, "float32"))

    return te.compute((n, extent[0], extent[1] * channels), at, name="rows")
