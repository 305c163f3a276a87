"""Depthwise fp32 convolutions and their input gradients: a row of results in registers with its row of taps.

Nothing is contracted over channels, so a vector is neighbouring channels of one place. A tile is a row of results. For
each row of taps, which stays in registers, every place of the source is read once and added to all results that it
reaches. What lies outside the source is left out, not padded.
"""

from __future__ import annotations

from dataclasses import dataclass
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
        image = [int(d) for d in source.shape[1:3]]
        phases = forward_phases if str(function.attrs["fqt.op"]) == "grouped_conv" else gradient_phases
        rows, columns = (phases(axes, axis, image[axis], extents[axis]) for axis in (0, 1))
        registers = features.vector_registers * features.vector_bits // (32 * lanes)
        return _kernel(
            DepthwiseCut(
                samples, channels, (image[0], image[1]), (extents[0], extents[1]), (axes.kernel[0], axes.kernel[1]),
                rows, columns, lanes, registers,
            )  # fmt: skip
        )


@dataclass(frozen=True)
class _Job:
    """What the statements of a job read and write.

    Attributes:
        cut: the sum.
        source, result: [N, H, W, C] float32.
        taps: [KH, KW, channels of a job] float32.
        sample: of the job.
        channel, local: the first channel of a vector, in the tensors and in the job.
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
        for column in self.cut.columns:
            for tiles in self.cut.tiles(column):
                if tiles.count == 1:
                    self.tile(row, y, column, tiles.first, tiles)
                else:
                    with T.serial(tiles.count) as tile:
                        self.tile(row, y, column, tiles.first + tile * tiles.columns, tiles)

    def tile(self, row: AxisPhase, y: Any, column: AxisPhase, z: Any, tiles: ColumnTiles) -> None:
        """Write the results of one tile, which begins at position ``z`` of its phase."""
        lanes = T.ramp(0, 1, self.cut.lanes)
        total = T.decl_buffer((tiles.columns, self.cut.lanes), "float32")
        for o in range(tiles.columns):
            T.buffer_store(total, T.broadcast(T.float32(0), self.cut.lanes), [o, lanes])
        if isinstance(y, int):
            for j in row.taps_at(y):
                self.taps_of_row(total, row, y, j, column, z, tiles)
        else:
            with T.serial(row.end(y) - row.begin(y)) as j:
                self.taps_of_row(total, row, y, row.begin(y) + j, column, z, tiles)
        for o in range(tiles.columns):
            place = [self.sample, row.first + row.step * y, column.first + column.step * (z + o)]
            T.buffer_store(self.result, total[o, lanes], [*place, T.ramp(self.channel, 1, self.cut.lanes)])

    def taps_of_row(
        self, total: Any, row: AxisPhase, y: Any, j: Any, column: AxisPhase, z: Any, tiles: ColumnTiles
    ) -> None:
        """Add each place of a row of the source to all results of a tile that it reaches."""
        lanes = T.ramp(0, 1, self.cut.lanes)
        at_row, tap_row = row.scale * y + row.offset + row.stride * j, row.tap + row.tap_step * j
        places = range(column.scale * (tiles.columns - 1) + column.reach)
        for i in places if column.stride > 0 else reversed(places):  # taps in rising order for each result
            place = column.scale * z + column.lowest + i
            if not tiles.inside and not 0 <= place < column.extent:
                continue
            value = self.source[self.sample, at_row, place, T.ramp(self.channel, 1, self.cut.lanes)]
            for o in range(tiles.columns):
                tap = column.tap_at(i - o * column.scale)
                if tap is not None:
                    factor = self.taps[tap_row, tap, T.ramp(self.local, 1, self.cut.lanes)]
                    T.buffer_store(total, total[o, lanes] + value * factor, [o, lanes])


def _kernel(c: DepthwiseCut) -> tirx.PrimFunc:
    """The TIR function of a sum."""
    vectors = c.block // (c.lanes * c.together)

    @script.prim_func(s_tir=True)
    def depthwise(
        source: T.Buffer((c.samples, *c.source, c.channels), "float32"),
        weight: T.Buffer((c.channels, 1, *c.kernel), "float32"),
        result: T.Buffer((c.samples, *c.result, c.channels), "float32"),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        for job in T.parallel(c.channels // c.block * c.chunks * c.parts):
            taps = T.alloc_buffer((*c.kernel, c.block), "float32")
            first: T.let = job % (c.channels // c.block) * c.block
            chunk: T.let = job // (c.channels // c.block) % c.chunks
            part: T.let = job // (c.channels // c.block * c.chunks)
            for channel, kh, kw in T.grid(c.block, *c.kernel):
                taps[kh, kw, channel] = weight[first + channel, 0, kh, kw]
            for n, line in T.grid(T.min(c.chunk, c.samples - chunk * c.chunk), vectors):
                _rows(c, source, taps, result, chunk * c.chunk + n, first, line, part)

    return depthwise


def _rows(
    c: DepthwiseCut, source: Any, taps: Any, result: Any, sample: Any, first: Any, line: Any, part: Any
) -> None:
    """The rows of a sample that a job writes, of the channels of a line of the cache."""

    def job(vector: Any) -> _Job:
        local = (line * c.together + vector) * c.lanes
        return _Job(c, source, taps, result, sample, first + local, local)

    for row in c.rows:
        if c.written_out:
            with T.serial(c.together) as vector:
                for y in range(row.positions):
                    job(vector).row(row, y)
            continue
        begin, end = part * row.positions // c.parts, (part + 1) * row.positions // c.parts
        with T.serial(end - begin) as y, T.serial(c.together) as vector:
            job(vector).row(row, begin + y)
