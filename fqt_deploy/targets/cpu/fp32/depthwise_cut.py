"""How a depthwise convolution, or its input gradient, is cut into jobs, rows and register tiles on a CPU.

Both are the same sum: a result adds up elements of a source at places that follow one another, each times a tap of its
channel. In an input gradient with a stride, positions take turns, and each phase has taps of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from fqt_deploy.ops.lib.convolution_axes import ConvolutionAxes
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.fp32.matrix_tile import ceil_div

_MOST_COLUMNS, _FEWEST_COLUMNS = 16, 4
"""Bounds of the results of a tile, whatever the registers: more do not help, fewer are slow even with spilled taps."""
_CHANNELS = 32
"""Channels of a job, about: neighbours in memory, whose taps stay in the first-level cache."""
_LINES = 32
"""Channels of two cache lines, which processors fetch together."""
_JOBS = 32
"""Least number of jobs, if there are as many samples and rows: work for that many threads."""
_WRITTEN_OUT = 256
"""Most products of a vector of channels that are written out one by one, rows and all."""


@dataclass(frozen=True)
class AxisPhase:
    """The taps of every ``step``-th position of a result's axis, beginning with ``first``.

    Position ``first + step * i`` reads place ``scale * i + offset + stride * j`` of the source through tap
    ``tap + tap_step * j``, for ``j`` below ``count``, as far as the source has it.

    Attributes:
        first, step, positions: which positions of the result, and how many.
        scale, offset, stride: where the source is read, in rising order.
        tap, tap_step, count: the taps.
        extent: of the source.
    """

    first: int
    step: int
    positions: int
    scale: int
    offset: int
    stride: int
    tap: int
    tap_step: int
    count: int
    extent: int

    def begin(self, i: Any) -> Any:
        """The first ``j`` that lies in the source at position ``i``."""
        return T.max(0, _floor(self.stride - 1 - self.offset - self.scale * i, self.stride))

    def end(self, i: Any) -> Any:
        """The ``j`` behind the last that lies in the source at position ``i``; at least ``begin``."""
        left = self.extent - 1 - self.offset - self.scale * i
        return T.max(self.begin(i), T.min(self.count, _floor(left, self.stride) + 1))

    def taps_at(self, i: int) -> list[int]:
        """The ``j`` that lie in the source at position ``i``."""
        place = self.scale * i + self.offset
        return [j for j in range(self.count) if 0 <= place + j * self.stride < self.extent]

    def tap_at(self, distance: int) -> int | None:
        """The tap through which a position reads the place so far from its first one; None where it does not."""
        j, rest = divmod(distance, self.stride)
        return None if rest or not 0 <= j < self.count else self.tap + self.tap_step * j

    def inside(self, first: int, columns: int) -> bool:
        """Whether all that ``columns`` positions from ``first`` on read lies in the source."""
        last = self.scale * (first + columns - 1) + self.offset + (self.count - 1) * self.stride
        return self.scale * first + self.offset >= 0 and last < self.extent


def _floor(value: Any, divisor: int) -> Any:
    return value if divisor == 1 else T.floordiv(value, divisor)


@dataclass(frozen=True)
class ColumnTiles:
    """Tiles of one width, one after another along a row: neighbours in registers with what they read.

    Attributes:
        first: position of the first one along each phase.
        widths: results of each phase in a tile.
        count: how many tiles.
        inside: whether all that they read lies in the source.
    """

    first: int
    widths: tuple[int, ...]
    count: int
    inside: bool


@dataclass(frozen=True)
class DepthwiseCut:
    """One sum over taps and how it is cut.

    Attributes:
        samples, channels: extents of source and result.
        source, result: their rows and columns.
        kernel: taps of the weight.
        rows, columns: the phases of either axis.
        lanes: channels of a vector.
        registers: vectors that the processor keeps.
    """

    samples: int
    channels: int
    source: tuple[int, int]
    result: tuple[int, int]
    kernel: tuple[int, int]
    rows: tuple[AxisPhase, ...]
    columns: tuple[AxisPhase, ...]
    lanes: int
    registers: int

    @property
    def together(self) -> int:
        """Vectors of channels that take turns in a row: those of two cache lines."""
        return math.gcd(self.channels // self.lanes, max(1, _LINES // self.lanes))

    @property
    def block(self) -> int:
        """Channels of a job."""
        groups = self.channels // (self.lanes * self.together)
        most = max(1, _CHANNELS // (self.lanes * self.together))
        return self.lanes * self.together * max(d for d in range(1, most + 1) if groups % d == 0)

    @property
    def chunk(self) -> int:
        """Samples of a job: as many as leave enough jobs, since each copies its taps."""
        blocks = self.channels // self.block
        return ceil_div(self.samples, min(self.samples, ceil_div(_JOBS, blocks)))

    @property
    def chunks(self) -> int:
        """Jobs that share the samples of a block of channels."""
        return ceil_div(self.samples, self.chunk)

    @property
    def parts(self) -> int:
        """Jobs that share the rows of a sample, where there are few samples."""
        most = min(phase.positions for phase in self.rows)
        return max(1, min(most, _JOBS // (self.chunks * self.channels // self.block)))

    @property
    def written_out(self) -> bool:
        """Whether rows are written out: there are few, and which taps each has is then known."""
        products = math.prod(
            sum(len(phase.taps_at(i)) for phase in phases for i in range(phase.positions))
            for phases in (self.rows, self.columns)
        )
        return self.parts == 1 and products <= _WRITTEN_OUT

    def tiles(self) -> Iterator[ColumnTiles]:
        """The tiles of a row, through which its phases go together: those of a kind in one."""
        positions = max(phase.positions for phase in self.columns)
        free = self.registers - sum(phase.count for phase in self.columns) - 1
        most = max(1, max(_FEWEST_COLUMNS, min(_MOST_COLUMNS, free)) // len(self.columns))
        columns = ceil_div(positions, ceil_div(positions, most))

        def inside(first: int) -> bool:
            """Whether a tile is whole and reads nothing outside the source."""
            return all(p.positions >= first + columns and p.inside(first, columns) for p in self.columns)

        first = 0
        while first < positions:
            widths = tuple(min(columns, max(0, phase.positions - first)) for phase in self.columns)
            alike = 1
            while inside(first) and inside(first + alike * columns):
                alike += 1
            yield ColumnTiles(first, widths, alike, inside(first))
            first += alike * columns

    def places(self, tiles: ColumnTiles) -> list[int]:
        """The places of the source that a tile reads, from its first position, in rising order."""
        found = {
            phase.offset + phase.scale * o + phase.stride * j
            for phase, width in zip(self.columns, tiles.widths, strict=True)
            for o in range(width)
            for j in range(phase.count)
        }
        return sorted(found)


def forward_phases(axes: ConvolutionAxes, axis: int, source: int, result: int) -> tuple[AxisPhase, ...]:
    """The one phase of an axis of a convolution."""
    stride, dilation = axes.stride[axis], axes.dilation[axis]
    return (AxisPhase(0, 1, result, stride, -axes.padding[axis], dilation, 0, 1, axes.kernel[axis], source),)


def gradient_phases(axes: ConvolutionAxes, axis: int, source: int, result: int) -> tuple[AxisPhase, ...]:
    """The phases of an axis of an input gradient: as many as the stride. Their taps fall as places rise."""
    stride, dilation, padding = axes.stride[axis], axes.dilation[axis], axes.padding[axis]
    tap_step = stride // math.gcd(stride, dilation)
    phases = []
    for first in range(min(stride, result)):
        taps = [k for k in range(axes.kernel[axis]) if (first + padding - k * dilation) % stride == 0]
        last = taps[-1] if taps else 0
        positions, offset = ceil_div(result - first, stride), (first + padding - last * dilation) // stride
        places = (1, offset, tap_step * dilation // stride)
        phases.append(AxisPhase(first, stride, positions, *places, last, -tap_step, len(taps), source))
    return tuple(phases)


def vector_lanes(channels: int, features: CpuFeatures) -> int | None:
    """Channels of a vector, of which the processor keeps sixteen or more; None where none divides all channels."""
    most = min(16, 2 * features.accumulators)
    return next((lanes for lanes in (16, 8, 4) if lanes <= most and channels % lanes == 0), None)
