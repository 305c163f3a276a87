"""Depthwise fp32 convolutions and their input gradients: a row of results in registers with its row of taps.

Nothing is contracted over channels, so a vector is neighbouring channels of one place. A tile is a row of results. For
each row of taps, which stays in registers, every place of the source is read once and added to all results that it
reaches. What lies outside the source is left out, not padded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.ops.lib.convolution_axes import ConvolutionAxes
from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.fp32.depthwise_cut import (
    AxisPhase,
    ColumnTiles,
    DepthwiseCut,
    forward_phases,
    gradient_phases,
    vector_lanes,
)
from fqt_deploy.targets.kernel_arguments import arguments_of

MOST_TAPS = 128
"""More are not written out."""


def depthwise_axes(function: tirx.PrimFunc, weight: Any) -> ConvolutionAxes | None:
    """The axes of a two-dimensional convolution with as many groups as channels on both sides; None for any other."""
    arguments = arguments_of(function)
    if arguments is None or len(weight.shape) != 4:
        return None
    outputs, channels, *kernel = (int(d) for d in weight.shape)
    if channels != 1 or outputs != arguments["groups"] or kernel[0] * kernel[1] > MOST_TAPS:
        return None
    return ConvolutionAxes(kernel, arguments["stride"], arguments["padding"], arguments["dilation"])


class Fp32DepthwiseRule:
    """Takes ``grouped_conv`` and ``grouped_conv_input_grad`` over two axes with one channel a group."""

    ops: ClassVar[frozenset[str]] = frozenset({"grouped_conv", "grouped_conv_input_grad"})

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """Each result from the taps that reach it."""
        source, weight, result = function.params
        axes = depthwise_axes(function, weight)
        samples, *extents, channels = (int(d) for d in result.shape)
        if axes is None or (lanes := vector_lanes(channels, features)) is None:
            return None
        (height, width), (kernel_h, kernel_w) = (int(d) for d in source.shape[1:3]), axes.kernel
        phases = forward_phases if str(function.attrs["fqt.op"]) == "grouped_conv" else gradient_phases
        rows, columns = phases(axes, 0, height, extents[0]), phases(axes, 1, width, extents[1])
        registers = features.vector_registers * features.vector_bits // (32 * lanes)
        sizes = (height, width), (extents[0], extents[1]), (kernel_h, kernel_w)
        return _kernel(DepthwiseCut(samples, channels, *sizes, rows, columns, lanes, registers))


@dataclass(frozen=True)
class _Job:
    """What the statements of a job read and write.

    Attributes:
        cut: the sum.
        source: [N * H * W * C] float32, all in one axis.
        taps: [KH, KW, channels of a job] float32.
        result: [N, H, W, C] float32.
        sample: of the job.
        channel, local: the first channel of a line, in the tensors and in the job.
    """

    cut: DepthwiseCut
    source: Any
    taps: Any
    result: Any
    sample: Any
    channel: Any
    local: Any

    def row(self, row: AxisPhase, y: Any) -> None:
        """Write row ``y`` of a phase; a number where rows are written out."""
        for tiles in self.cut.tiles():
            with T.serial(tiles.count) as tile, T.serial(self.cut.together) as vector:
                ahead = vector * self.cut.lanes
                job = replace(self, channel=self.channel + ahead, local=self.local + ahead)
                job.tile(row, y, tiles.first + tile * tiles.widths[0] if tiles.count > 1 else tiles.first, tiles)

    def tile(self, row: AxisPhase, y: Any, z: Any, tiles: ColumnTiles) -> None:
        """Write the results of one tile, which begins at position ``z`` of each phase of columns."""
        lanes, count = T.ramp(0, 1, self.cut.lanes), max(tiles.widths)
        total = T.alloc_buffer((len(tiles.widths), count, self.cut.lanes), "float32")
        places = [(phase, o) for phase, width in enumerate(tiles.widths) for o in range(width)]
        for place in places:
            T.buffer_store(total, T.broadcast(T.float32(0), self.cut.lanes), [*place, lanes])
        if isinstance(y, int):
            for j in row.taps_at(y):
                self.taps_of_row(total, row, y, j, z, tiles)
        else:
            with T.serial(row.end(y) - row.begin(y)) as j:
                self.taps_of_row(total, row, y, row.begin(y) + j, z, tiles)
        for phase, o in places:
            column = self.cut.columns[phase]
            at = [self.sample, row.first + row.step * y, column.first + column.step * (z + o)]
            T.buffer_store(self.result, total[phase, o, lanes], [*at, T.ramp(self.channel, 1, self.cut.lanes)])

    def taps_of_row(self, total: Any, row: AxisPhase, y: Any, j: Any, z: Any, tiles: ColumnTiles) -> None:
        """Add each place of a row of the source to all results of a tile that it reaches."""
        cut, lanes = self.cut, T.ramp(0, 1, self.cut.lanes)
        scale, extent = cut.columns[0].scale, cut.source[1]
        at_row, tap_row = row.scale * y + row.offset + row.stride * j, row.tap + row.tap_step * j
        # in memory, so that places are constants behind it: in an index they would be folded into it one by one
        base = T.alloc_buffer((1,), "int32")
        start = (self.sample * cut.source[0] + at_row) * extent + scale * z
        T.buffer_store(base, start * cut.channels + self.channel, [0])
        for place in cut.places(tiles):
            if not tiles.inside and not 0 <= scale * z + place < extent:
                continue
            value = self.source[T.ramp(base[0] + place * cut.channels, 1, cut.lanes)]
            for phase, column in enumerate(cut.columns):
                for o in range(tiles.widths[phase]):
                    tap = column.tap_at(place - column.offset - o * scale)
                    if tap is not None:
                        factor = self.taps[tap_row, tap, T.ramp(self.local, 1, cut.lanes)]
                        T.buffer_store(total, total[phase, o, lanes] + value * factor, [phase, o, lanes])


def _kernel(c: DepthwiseCut) -> tirx.PrimFunc:
    """The TIR function of a sum."""

    @script.prim_func(s_tir=True)
    def depthwise(
        source: T.Buffer((c.samples, *c.source, c.channels), "float32"),
        weight: T.Buffer((c.channels, 1, *c.kernel), "float32"),
        result: T.Buffer((c.samples, *c.result, c.channels), "float32"),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        elements = T.decl_buffer((c.samples * math.prod(c.source) * c.channels,), "float32", data=source.data)
        for job in T.parallel(c.channels // c.block * c.chunks * c.parts):
            taps = T.alloc_buffer((*c.kernel, c.block), "float32")
            first: T.let = job % (c.channels // c.block) * c.block
            chunk: T.let = job // (c.channels // c.block) % c.chunks
            part: T.let = job // (c.channels // c.block * c.chunks)
            for channel, kh, kw in T.grid(c.block, *c.kernel):
                taps[kh, kw, channel] = weight[first + channel, 0, kh, kw]
            for n in T.serial(T.min(c.chunk, c.samples - chunk * c.chunk)):
                _sample(c, elements, taps, result, chunk * c.chunk + n, first, part)

    return depthwise


def _sample(c: DepthwiseCut, source: Any, taps: Any, result: Any, sample: Any, first: Any, part: Any) -> None:
    """The rows of a sample that a job writes, each of all its channels: what they read is still in the cache then."""
    width = c.lanes * c.together

    def write(row: AxisPhase, y: Any) -> None:
        with T.serial(c.block // width) as line:
            _Job(c, source, taps, result, sample, first + line * width, line * width).row(row, y)

    for row in c.rows:
        if c.written_out:
            for y in range(row.positions):
                write(row, y)
            continue
        begin, end = part * row.positions // c.parts, (part + 1) * row.positions // c.parts
        with T.serial(end - begin) as y:  # from 0 on: TVM loses another beginning in a job
            write(row, begin + y)
