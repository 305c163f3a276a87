"""fp32 convolutions: register tiles over zero-padded rows, in which a row of taps is one contiguous run.

A tile holds positions of several rows and images where one row is short: a panel of the weight, contiguous in memory,
is then read once for eight positions, whatever the size of the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from tvm import te, tirx

from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.register_tile import (
    lanes_of,
    largest_divisor,
    new_schedule,
    placeholders,
    schedule_helpers,
    schedule_padding,
)
from fqt_deploy.targets.products import Extents, convolution_of

_ROWS = 4
"""Upper bound of the positions in a tile, with two vectors of channels; twice as many with one."""
_ACCUMULATORS = 8
"""Upper bound of accumulators: enough to hide the latency of an addition. With twice as many, LLVM spills them where it
unrolls the taps.
"""


class Fp32ConvolutionRule:
    """Takes ``conv2d`` with a multiple of 4 output channels."""

    ops: ClassVar[frozenset[str]] = frozenset({"conv2d", "grouped_conv"})

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """Returns the scheduled convolution, whose tiles read rows of the padded image that are ``stride`` apart."""
        x, weight, result = function.params
        layer = convolution_of(function, image=x, output=result, kernel=weight)
        extents = [int(d) for d in result.shape]
        if layer is None or lanes_of(extents[3]) is None:
            return None
        image, w = placeholders(function)
        rows = padded_rows(image, layer.padding, layer.padding, "rows")
        product = tiled_product(
            rows, int(w.shape[1]), lambda kh, kw, c, o: w[o, c, kh, kw], layer.kernel, layer.stride, (0, 0), extents,
            features.accumulators,
        )  # fmt: skip
        schedule = new_schedule([image, w, product.result])
        schedule_product(schedule, product)
        schedule_rows(schedule, "rows")
        return schedule.mod["main"]


@dataclass(frozen=True)
class Product:
    """A convolution in register tiles.

    Attributes:
        name: ends the names of its stages.
        result: [N, Y, Z, O] float32.
        tile: samples, rows and columns of a register tile.
        width: channels of a register tile.
        lanes: channels of a vector.
    """

    name: str
    result: te.Tensor
    tile: list[int]
    width: int
    lanes: int


def tiled_product(
    rows: te.Tensor,
    channels: int,
    weight: Callable[..., Any],
    kernel: Extents,
    stride: Extents,
    origin: Extents,
    extents: list[int],
    accumulators: int,
    name: str = "",
) -> Product:
    """A convolution of ``rows`` from row and column ``origin`` on with ``weight(kh, kw, c, o)``.

    The number of results ``extents[3]`` is a multiple of 4.
    """
    run, outputs, accumulators = kernel[1] * channels, extents[3], min(_ACCUMULATORS, accumulators)
    lanes = lanes_of(outputs) or 1
    vectors = outputs // lanes
    tile = tile_extents(extents[:3], min(_ROWS if vectors % 2 == 0 else 2 * _ROWS, accumulators))
    width = lanes * largest_divisor(vectors, max(1, accumulators // math.prod(tile)))
    panels = te.compute(
        (outputs // width, kernel[0], run, width),
        lambda p, kh, m, o: weight(kh, m // channels, m % channels, p * width + o),
        name=f"panels{name}",
    )
    kh, m = te.reduce_axis((0, kernel[0]), "kh"), te.reduce_axis((0, run), "m")

    def term(n: Any, y: Any, z: Any, o: Any) -> Any:
        row, column = origin[0] + y * stride[0] + kh, origin[1] + z * stride[1]
        return te.sum(rows[n, row, column * channels + m] * panels[o // width, kh, m, o % width], axis=[kh, m])

    total = te.compute(extents, term, name=f"total{name}")
    return Product(name, te.compute(extents, lambda *i: total[i], name=f"result{name}"), tile, width, lanes)


def tile_extents(extents: list[int], limit: int) -> list[int]:
    """Part of each axis in a tile of at most ``limit`` elements: of the innermost axes as much as fits."""
    tile: list[int] = []
    for extent in reversed(extents):
        tile.insert(0, largest_divisor(extent, max(1, limit // math.prod(tile))))
    return tile


def schedule_product(schedule: Any, product: Product) -> None:
    """Accumulate a product's total in registers for a tile of its results."""
    tile, width, lane_count = product.tile, product.width, product.lanes
    total, result = schedule.get_sblock(f"total{product.name}"), schedule.get_sblock(f"result{product.name}")
    *axes, channel = schedule.get_loops(result)
    split = [schedule.split(axis, [None, size]) for axis, size in zip(axes, tile, strict=True)]
    outer, inner = [pair[0] for pair in split], [pair[1] for pair in split]
    panel, vector, lane = schedule.split(channel, [None, width // lane_count, lane_count])
    schedule.reorder(*outer, panel, *inner, vector, lane)
    schedule.compute_at(total, panel, preserve_unit_loops=True)
    loops = schedule.get_loops(total)[len(outer) + 1 :]
    positions, channels, reductions = loops[: len(tile)], loops[len(tile)], loops[len(tile) + 1 :]
    vectors, lanes = schedule.split(channels, [None, lane_count])
    schedule.reorder(*reductions, *positions, vectors, lanes)
    schedule.vectorize(lanes)
    schedule.vectorize(lane)
    for loop in (*positions, vectors, *inner, vector):
        schedule.unroll(loop)
    schedule.parallel(schedule.fuse(*outer))
    schedule.decompose_reduction(total, reductions[0])
    schedule_helpers(schedule, (f"panels{product.name}",))


def padded_rows(image: te.Tensor, before: Extents, after: Extents, name: str) -> te.Tensor:
    """The rows in a border of zeros: [N, b + H + a, (b + W + a) * C]; columns and channels are one axis."""
    n, height, width, channels = (int(d) for d in image.shape)

    def element(b: Any, h: Any, r: Any) -> Any:
        if not any((*before, *after)):
            return image[b, h, r // channels, r % channels]
        y, at = h - before[0], r - before[1] * channels
        inside = tirx.all(y >= 0, y < height, at >= 0, at < width * channels)
        return tirx.if_then_else(inside, image[b, y, at // channels, at % channels], tirx.const(0.0, "float32"))

    extents = (n, before[0] + height + after[0], (before[1] + width + after[1]) * channels)
    return te.compute(extents, element, name=name)


def schedule_rows(schedule: Any, name: str) -> None:
    """Copy an image into its border of zeros; where ``padded_rows`` added none, read the image where it is."""
    block = schedule.get_sblock(name)
    image, rows = schedule.get(block).reads[0].source, schedule.get(block).writes[0].source
    if math.prod(map(int, image.shape)) == math.prod(map(int, rows.shape)):
        schedule.compute_inline(block)
    else:
        schedule_padding(schedule, block)
