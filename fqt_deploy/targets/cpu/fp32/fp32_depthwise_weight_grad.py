"""Weight gradients of depthwise fp32 convolutions: an accumulator for each tap of a vector of channels."""

from __future__ import annotations

from typing import Any, ClassVar

from tvm import te, tirx

from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.fp32.fp32_depthwise import depthwise_axes
from fqt_deploy.targets.cpu.register_tile import (
    lanes_of,
    largest_divisor,
    new_schedule,
    placeholders,
    schedule_helpers,
)

_OPERANDS = 5
"""Registers that are not accumulators."""
_COLUMNS = 4
"""Positions next to each other, which share what they read where there are registers left."""
_CHUNKS = 32
"""Partial sums: independent of the thread count, and shorter sums round less."""


class Fp32DepthwiseWeightGradRule:
    """Takes ``grouped_conv_weight_grad`` over two axes with one channel a group."""

    ops: ClassVar[frozenset[str]] = frozenset({"grouped_conv_weight_grad"})

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """As many rows of taps at once as there are registers for, summed over the positions of some samples."""
        axes = depthwise_axes(function, function.params[-1])
        if axes is None or (lanes := lanes_of(int(function.params[0].shape[3]))) is None:
            return None
        x, g = placeholders(function)
        samples, height, width, channels = (int(d) for d in x.shape)
        oh, ow = (int(d) for d in g.shape[1:3])
        (stride_h, stride_w), (dilation_h, dilation_w), kernel = axes.stride, axes.dilation, axes.kernel
        before = axes.padding
        extents = [
            max(before[axis] + extent, (outputs - 1) * axes.stride[axis] + (kernel[axis] - 1) * axes.dilation[axis] + 1)
            for axis, (extent, outputs) in enumerate(zip((height, width), (oh, ow), strict=True))
        ]

        def padded_element(n: Any, y: Any, z: Any, c: Any) -> Any:
            row, column = y - before[0], z - before[1]
            inside = tirx.all(row >= 0, row < height, column >= 0, column < width)
            return tirx.if_then_else(inside, x[n, row, column, c], tirx.const(0.0, "float32"))

        padded = te.compute((samples, *extents, channels), padded_element, name="padded")
        chunks = largest_divisor(samples, _CHUNKS)
        size = samples // chunks
        b, y, z = te.reduce_axis((0, size), "b"), te.reduce_axis((0, oh), "y"), te.reduce_axis((0, ow), "z")

        def term(q: Any, kh: Any, kw: Any, c: Any) -> Any:
            row, column = y * stride_h + kh * dilation_h, z * stride_w + kw * dilation_w
            return te.sum(padded[q * size + b, row, column, c] * g[q * size + b, y, z, c], axis=[b, y, z])

        total = te.compute((chunks, *kernel, channels), term, name="total")
        partial = te.compute(total.shape, lambda *i: total[i], name="partial")
        q = te.reduce_axis((0, chunks), "q")
        sums = te.compute((*kernel, channels), lambda kh, kw, c: te.sum(partial[q, kh, kw, c], axis=q), name="sums")
        result = te.compute((channels, 1, *kernel), lambda c, _, kh, kw: sums[kh, kw, c], name="result")
        schedule = new_schedule([x, g, result])
        registers = 2 * features.accumulators - _OPERANDS
        rows = largest_divisor(kernel[0], max(1, registers // kernel[1]))
        columns = largest_divisor(ow, max(1, min(_COLUMNS, registers // (rows * kernel[1]))))
        _schedule(schedule, rows, columns, lanes)
        return schedule.mod["main"]


def _schedule(schedule: Any, rows: int, columns: int, lanes: int) -> None:
    """A job is a chunk of samples: it pads them, then goes through vectors of channels and rows of taps."""
    chunk, kh, kw, channel = schedule.get_loops(schedule.get_sblock("partial"))
    kh_outer, kh_inner = schedule.split(kh, [None, rows])
    c_outer, lane = schedule.split(channel, [None, lanes])
    schedule.reorder(chunk, c_outer, kh_outer, kh_inner, kw, lane)
    schedule.vectorize(lane)
    schedule.unroll(kh_inner)
    schedule.unroll(kw)
    schedule.parallel(chunk)
    total = schedule.get_sblock("total")
    schedule.compute_at(total, kh_outer, preserve_unit_loops=True)
    *_, row, column, lane, b, y, z = schedule.get_loops(total)
    z_outer, z_inner = schedule.split(z, [None, columns])
    schedule.reorder(b, y, z_outer, z_inner, row, column, lane)
    schedule.unroll(z_inner)
    schedule.vectorize(lane)
    schedule.unroll(row)
    schedule.unroll(column)
    schedule.decompose_reduction(total, b)
    pad = schedule.get_sblock("padded")
    schedule.compute_at(pad, chunk)
    padded_row, padded_column, channel = schedule.get_loops(pad)[-3:]
    for loop in (padded_row, padded_column):
        schedule.annotate(loop, "pragma_loop_partition_hint", True)
    _, lane = schedule.split(channel, [None, lanes])
    schedule.vectorize(lane)
    schedule_helpers(schedule, ("sums", "result"))
