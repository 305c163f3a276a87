"""Depthwise fp32 convolutions and their input gradients: vectors of channels, rows of taps written out.

Nothing is contracted over channels, so a weight is used for one channel alone and the memory sets the pace: rows are
padded in pieces that stay in the cache, and neighbouring results share what they read in registers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tvm import te, tirx

from fqt_deploy.ops.lib.convolution_axes import ConvolutionAxes
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.register_tile import lanes_of, largest_divisor, new_schedule, placeholders, schedule_helpers
from fqt_deploy.targets.kernel_arguments import arguments_of

MOST_TAPS = 128
"""More are not written out."""
_COLUMNS = 8
"""Results next to each other, in registers with what they read; a row of taps is written out for them."""
_PIECE = 32768
"""Elements of the padded rows of one job: they stay in the second-level cache."""


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
        _, weight, result = function.params
        axes = depthwise_axes(function, weight)
        if axes is None or (lanes := lanes_of(int(result.shape[3]))) is None:
            return None
        x, w = placeholders(function)
        extents = [int(d) for d in result.shape]
        place = _forward(axes) if str(function.attrs["fqt.op"]) == "grouped_conv" else _input_gradient(axes)
        return _scheduled(x, w, extents, axes.kernel, place, lanes, min(_COLUMNS, features.accumulators))


@dataclass(frozen=True)
class _Place:
    """Which element of the source a tap of a result multiplies.

    Attributes:
        at: axis, position of the result, tap -> position of the source.
        phases: positions of the result along each axis that take turns: each has taps of its own. ``has`` tells which.
        has: axis, position of the result, tap -> whether there is an element at all.
    """

    at: Callable[[int, Any, Any], Any]
    phases: tuple[int, int] = (1, 1)
    has: Callable[[int, Any, Any], Any] = lambda *_: True


def _forward(axes: ConvolutionAxes) -> _Place:
    stride, dilation, padding = axes.stride, axes.dilation, axes.padding
    return _Place(lambda axis, at, tap: at * stride[axis] + tap * dilation[axis] - padding[axis])


def _input_gradient(axes: ConvolutionAxes) -> _Place:
    stride = axes.stride

    def shifted(axis: int, at: Any, tap: Any) -> Any:
        return at + (axes.padding[axis] - tap * axes.dilation[axis])

    return _Place(
        lambda axis, at, tap: shifted(axis, at, tap) // stride[axis] if stride[axis] > 1 else shifted(axis, at, tap),
        (stride[0], stride[1]),
        lambda axis, at, tap: (shifted(axis, at, tap) % stride[axis]).equal(0) if stride[axis] > 1 else True,
    )


def _scheduled(
    source: te.Tensor, weight: te.Tensor, extents: list[int], kernel: list[int], place: _Place, lanes: int, columns: int
) -> tirx.PrimFunc:
    samples, *_, channels = extents
    image = [int(d) for d in source.shape[1:3]]
    bounds = [_bounds(place, axis, extents[1 + axis], kernel[axis], image[axis]) for axis in (0, 1)]
    before = [front for front, _ in bounds]
    padded_extents = [front + extent + behind for (front, behind), extent in zip(bounds, image, strict=True)]

    def padded_element(n: Any, y: Any, z: Any, c: Any) -> Any:
        row, column = y - before[0], z - before[1]
        inside = tirx.all(row >= 0, row < image[0], column >= 0, column < image[1])
        return tirx.if_then_else(inside, source[n, row, column, c], tirx.const(0.0, "float32"))

    padded = te.compute((samples, *padded_extents, channels), padded_element, name="padded")
    taps = te.compute((*kernel, channels), lambda kh, kw, c: weight[c, 0, kh, kw], name="taps")

    def term(index: Sequence[Any], kh: Any, kw: Any) -> Any:
        n, y, z, c = index
        return padded[n, place.at(0, y, kh) + before[0], place.at(1, z, kw) + before[1], c] * taps[kh, kw, c]

    if place.phases == (1, 1):
        kh, kw = te.reduce_axis((0, kernel[0]), "kh"), te.reduce_axis((0, kernel[1]), "kw")
        total = te.compute(extents, lambda *i: te.sum(term(i, kh, kw), axis=[kh, kw]), name="total")
        result = te.compute(extents, lambda *i: total[i], name="result")
    else:
        result = te.compute(extents, lambda *i: _written_out(i, kernel, place, term), name="result")
    schedule = new_schedule([source, weight, result])
    piece = max(1, _PIECE // (padded_extents[1] * channels))
    _schedule(schedule, extents, place.phases, piece, lanes, columns)
    return schedule.mod["main"]


def _written_out(index: tuple[Any, ...], kernel: list[int], place: _Place, term: Callable[..., Any]) -> Any:
    """The sum of the taps that an element has; which ones is known where its phase is."""
    _, y, z, _ = index
    zero = tirx.const(0.0, "float32")
    total: Any = zero
    for kh, kw in itertools.product(*map(range, kernel)):
        has = tirx.all(place.has(0, y, kh), place.has(1, z, kw))
        total = total + tirx.if_then_else(has, term(index, kh, kw), zero)
    return total


def _bounds(place: _Place, axis: int, extent: int, kernel: int, image: int) -> tuple[int, int]:
    """Zeros in front of and behind an axis of the source, so that all places lie inside."""
    reached = [place.at(axis, at, tap) for at in (0, extent - 1) for tap in (0, kernel - 1)]
    return max(0, -min(reached)), max(0, max(reached) + 1 - image)


def _schedule(schedule: Any, extents: list[int], phases: tuple[int, int], piece: int, lanes: int, columns: int) -> None:
    """A job is some rows of one sample: it pads what it reads, then goes through vectors of channels."""
    _, height, width, _ = extents
    rows = -(-largest_divisor(height, min(height, piece)) // phases[0]) * phases[0]
    columns = phases[1] * max(1, columns // phases[1] // 2) if phases[1] > 1 else largest_divisor(width, columns)
    n, y, z, c = schedule.get_loops(schedule.get_sblock("result"))
    y_outer, y_inner = schedule.split(y, [None, rows])
    y_middle, y_phase = schedule.split(y_inner, [None, phases[0]])
    z_outer, z_inner = schedule.split(z, [None, columns])
    c_outer, c_inner = schedule.split(c, [None, lanes])
    schedule.reorder(n, y_outer, c_outer, y_middle, z_outer, y_phase, z_inner, c_inner)
    schedule.vectorize(c_inner)
    schedule.unroll(y_phase)
    schedule.unroll(z_inner)
    job = schedule.fuse(n, y_outer)
    schedule.parallel(job)
    if phases == (1, 1):
        _accumulate(schedule, schedule.get_sblock("total"), z_outer)
    pad = schedule.get_sblock("padded")
    schedule.compute_at(pad, job)
    row, column, channel = schedule.get_loops(pad)[-3:]
    for loop in (row, column):
        schedule.annotate(loop, "pragma_loop_partition_hint", True)
    _, lane = schedule.split(channel, [None, lanes])
    schedule.vectorize(lane)
    schedule_helpers(schedule, ("taps",))


def _accumulate(schedule: Any, total: Any, tile: Any) -> None:
    """Keep the sums of a tile in registers: a row of taps after the other."""
    schedule.compute_at(total, tile, preserve_unit_loops=True)
    *_, row, column, lane, kh, kw = schedule.get_loops(total)
    schedule.reorder(kh, kw, row, column, lane)
    for loop in (kw, row, column):
        schedule.unroll(loop)
    schedule.vectorize(lane)
    schedule.decompose_reduction(total, kh)
