"""Weight gradients of fp32 convolutions: register tiles over panels of both operands, in chunks of positions.

Both operands are copied into panels that a tile reads from front to back: the gradient in two vectors of output
channels, unless few taps read it, the zero-padded input in eight channels. A tap is an offset into the latter.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from tvm import te, tirx

from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.fp32.fp32_convolution import tile_extents
from fqt_deploy.targets.cpu.register_tile import lanes_of, largest_divisor, new_schedule, placeholders
from fqt_deploy.targets.products import Extents, convolution_of

_ROWS = 8
"""Number of input channels in a tile: with two vectors of output channels, sixteen accumulators for ten operands."""
_CHUNK = 2048
"""Number of positions summed at a stretch, so that panels of both operands stay in the second-level cache."""
_CHUNKS = 64
"""Upper bound of the number of partial sums, for each is as large as the weight."""
_PANEL_READS = 16
"""Least number of reads of a gradient panel for its copy to pay: more than by a first layer's taps."""
_UNROLLED = 4
"""Upper bound of the positions with constant offsets: longer runs are a loop, or LLVM computes offsets in vectors."""


class Fp32WeightGradRule:
    """Takes ``conv2d_weight_grad`` with a multiple of 4 output channels."""

    ops: ClassVar[frozenset[str]] = frozenset({"conv2d_weight_grad", "grouped_conv_weight_grad"})

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """A tile of input times output channels for each tap and chunk, then the chunks' sums in the weight's order."""
        layer = convolution_of(function, image=function.params[0], output=function.params[1])
        outputs, channels, *_ = (int(d) for d in function.params[-1].shape)
        if layer is None or (lanes := lanes_of(outputs)) is None:
            return None
        kernel, stride = layer.kernel, layer.stride
        x, g = placeholders(function)
        positions = [layer.samples, *layer.output]
        rows = largest_divisor(channels, min(_ROWS, features.accumulators))
        width = lanes * largest_divisor(outputs // lanes, max(1, features.accumulators // rows))
        gradient = _gradient_panels(g, width) if layer.taps * (channels // rows) >= _PANEL_READS else None
        image = _input_panels(x, layer.padding, rows)
        chunk = tile_extents(positions, max(_CHUNK, math.prod(positions) // _CHUNKS))
        chunks = [extent // size for extent, size in zip(positions, chunk, strict=True)]
        b, y, z = (te.reduce_axis((0, size), axis) for size, axis in zip(chunk, "byz", strict=True))

        def term(i: Any, j: Any, k: Any, p: Any, c: Any, kh: Any, kw: Any, row: Any, lane: Any) -> Any:
            n, oh, ow = i * chunk[0] + b, j * chunk[1] + y, k * chunk[2] + z
            factor = image[c, n, oh * stride[0] + kh, ow * stride[1] + kw, row]
            value = g[n, oh, ow, p * width + lane] if gradient is None else gradient[p, n, oh, ow, lane]
            return te.sum(factor * value, axis=[b, y, z])

        tiles = (outputs // width, channels // rows, *kernel, rows, width)
        total = te.compute((*chunks, *tiles), term, name="total")
        partial = te.compute(total.shape, lambda *i: total[i], name="partial")
        at = [te.reduce_axis((0, count), f"chunk{axis}") for axis, count in enumerate(chunks)]
        sums = te.compute(tiles, lambda *i: te.sum(partial[(*at, *i)], axis=at), name="sums")
        result = te.compute(
            (outputs, channels, *kernel),
            lambda o, c, kh, kw: sums[o // width, c // rows, kh, kw, c % rows, o % width],
            name="result",
        )
        schedule = new_schedule([x, g, result])
        _schedule_tile(schedule, largest_divisor(chunk[2], _UNROLLED), lanes)
        _schedule_sums(schedule, rows, width, lanes)
        _schedule_image(schedule)
        if gradient is not None:
            _schedule_gradient(schedule, lanes)
        return schedule.mod["main"]


def _gradient_panels(g: te.Tensor, width: int) -> te.Tensor:
    """The gradient in panels of ``width`` output channels: [O / width, N, OH, OW, width] of [N, OH, OW, O]."""
    *positions, outputs = (int(d) for d in g.shape)
    return te.compute(
        (outputs // width, *positions, width), lambda p, n, y, z, o: g[n, y, z, p * width + o], name="gradient"
    )


def _input_panels(x: te.Tensor, padding: Extents, rows: int) -> te.Tensor:
    """The input in panels of channels, in a border of zeros: [I / rows, N, H + 2p, W + 2p, rows]."""
    n, height, width, channels = (int(d) for d in x.shape)

    def element(p: Any, b: Any, h: Any, w: Any, c: Any) -> Any:
        y, z = h - padding[0], w - padding[1]
        inside = tirx.all(y >= 0, y < height, z >= 0, z < width)
        return tirx.if_then_else(inside, x[b, y, z, p * rows + c], tirx.const(0.0, "float32"))

    return te.compute(
        (channels // rows, n, height + 2 * padding[0], width + 2 * padding[1], rows), element, name="image"
    )


def _schedule_tile(schedule: Any, unrolled: int, lane_count: int) -> None:
    """Accumulate ``total`` in registers for a tile of ``partial``, whose last axes it spans."""
    total, partial = schedule.get_sblock("total"), schedule.get_sblock("partial")
    *outer, row, channel = schedule.get_loops(partial)
    vector, lane = schedule.split(channel, [None, lane_count])
    schedule.compute_at(total, outer[-1], preserve_unit_loops=True)
    row_loop, channel_loop, b, y, z = schedule.get_loops(total)[-5:]
    vectors, lanes = schedule.split(channel_loop, [None, lane_count])
    z, run = schedule.split(z, [None, unrolled])
    schedule.reorder(b, y, z, run, row_loop, vectors, lanes)
    schedule.vectorize(lanes)
    schedule.vectorize(lane)
    for loop in (run, row_loop, vectors, row, vector):
        schedule.unroll(loop)
    schedule.parallel(schedule.fuse(*outer))
    schedule.decompose_reduction(total, b)


def _schedule_sums(schedule: Any, rows: int, width: int, lane_count: int) -> None:
    """Add chunks for all taps of a tile, and transpose it while it is in the first-level cache."""
    o, c, kh, kw = schedule.get_loops(schedule.get_sblock("result"))
    panel, lane = schedule.split(o, [None, width])
    tile, row = schedule.split(c, [None, rows])
    schedule.reorder(panel, tile, lane, row, kh, kw)
    sums = schedule.get_sblock("sums")
    schedule.compute_at(sums, tile, preserve_unit_loops=True)
    *spatial, channel, i, j, k = schedule.get_loops(sums)[2:]
    vector, lanes = schedule.split(channel, [None, lane_count])
    schedule.reorder(i, j, k, *spatial, vector, lanes)
    schedule.vectorize(lanes)
    schedule.parallel(schedule.fuse(panel, tile))
    schedule.decompose_reduction(sums, i)


def _schedule_gradient(schedule: Any, lane_count: int) -> None:
    """Schedules the copy of the gradient into panels, a vector at a time."""
    panel, sample, _, _, channel = schedule.get_loops(schedule.get_sblock("gradient"))
    _, lanes = schedule.split(channel, [None, lane_count])
    schedule.vectorize(lanes)
    schedule.parallel(schedule.fuse(panel, sample))


def _schedule_image(schedule: Any) -> None:
    """Copy vectors of the inside without asking for each element whether it is inside."""
    panel, sample, row, column, channel = schedule.get_loops(schedule.get_sblock("image"))
    for loop in (row, column):
        schedule.annotate(loop, "pragma_loop_partition_hint", True)
    schedule.vectorize(channel)
    schedule.parallel(schedule.fuse(panel, sample))
