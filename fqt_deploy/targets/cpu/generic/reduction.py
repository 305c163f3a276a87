"""Sums, means, minima and maxima: vector lanes are channels, or partial results of one row.

Partial results belong to indices, never to threads, so results do not depend on the thread count.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import tvm_ffi
from tvm import s_tir, tirx

from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.generic.elementwise import (
    LANES,
    LEAST_LANES,
    PARALLEL_ELEMENTS,
    extents,
    is_spatial,
    schedule_spatial,
)
from fqt_deploy.targets.cpu.register_tile import largest_divisor

LONG_ROW = 1024
"""Least number of channels of rows that are read one after another: a tile of channels would be a few lines from every
page.
"""
STREAMED_CHANNELS = 1024
"""Upper bound of the channels whose sums stay in the first-level cache while rows stream by."""
STREAMS = 8
"""Number of rows read at a time."""
JOBS = 8
"""Number of independent pieces to cut a reduction of long rows into: work for that many threads."""
CHANNEL_TILES = (64, 32, 16)
"""Numbers of channels that may be summed at once: four vector accumulators hide the latency of an addition."""
MOST_NARROW = 12
"""Upper bound of the vectors of ``LEAST_LANES`` channels that are summed at once, where no tile divides them."""


class ReductionRule:
    """Schedules each block of a function by which axis of its largest operand is contiguous."""

    ops: ClassVar[frozenset[str]] = frozenset()

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """Returns the scheduled function for any function: what fits no pattern stays a plain loop nest."""
        schedule = s_tir.Schedule(function)
        for block in schedule.get_child_blocks(schedule.get_sblock("root")):
            if is_spatial(schedule, block):
                schedule_spatial(schedule, block)
            elif _reduces_contiguous_axis(schedule, block):
                _rows(schedule, block)
            else:
                schedule_channels(schedule, block)
        return schedule.mod["main"]


def _reduces_contiguous_axis(schedule: Any, block: Any) -> bool:
    """Whether the last index of the largest operand is a reduction axis."""
    statement = schedule.get(block)
    reduced = {axis.var for axis in statement.iter_vars if int(axis.iter_type) == tirx.IterVar.CommReduce}
    largest = max(statement.reads, key=lambda r: _size(r.source), default=None)
    if largest is None or not largest.region:
        return False
    found: list[bool] = []

    def visit(variable: Any) -> None:
        found.append(variable in reduced)

    tvm_ffi.structural_walk(largest.region[-1].min, (tirx.Var, visit))
    return any(found)


def _size(buffer: Any) -> int:
    total = 1
    for extent in buffer.shape:
        total *= int(extent)
    return total


def _split_axes(schedule: Any, block: Any) -> tuple[list[Any], list[Any]]:
    """Returns the spatial and the reduction loops of ``block``, each from the outermost on."""
    axes = schedule.get(block).iter_vars
    loops = schedule.get_loops(block)
    spatial = [lp for lp, a in zip(loops, axes, strict=True) if int(a.iter_type) == tirx.IterVar.DataPar]
    reduced = [lp for lp, a in zip(loops, axes, strict=True) if int(a.iter_type) != tirx.IterVar.DataPar]
    return spatial, reduced


def schedule_channels(schedule: Any, block: Any) -> None:
    """Schedules sums of [.., reduced, channel]: channel tiles in vector registers, reduction loops inside them."""
    spatial, reduced = _split_axes(schedule, block)
    total = 1
    for extent in extents(schedule, block):
        total *= extent
    if not spatial or total < LANES:
        return
    tile, width = _tile(int(schedule.get(spatial[-1]).extent))
    if not tile:
        if len(spatial) > 1 and total >= PARALLEL_ELEMENTS:
            schedule.parallel(schedule.fuse(*spatial[:-1]) if len(spatial) > 2 else spatial[0])
        return
    if _streams(schedule, spatial, reduced):
        jobs, first = _stream_rows(schedule, spatial, reduced)
    else:
        outer, inner = schedule.split(spatial[-1], [None, tile])
        schedule.reorder(*spatial[:-1], outer, *reduced, inner)
        vectors, lanes = schedule.split(inner, [None, width])
        schedule.vectorize(lanes)
        schedule.unroll(vectors)
        jobs, first = [*spatial[:-1], outer], reduced[0]
    fused = schedule.fuse(*jobs) if len(jobs) > 1 else jobs[0]
    if total >= PARALLEL_ELEMENTS:
        schedule.parallel(fused)
    schedule.decompose_reduction(block, first)


def _tile(channels: int) -> tuple[int, int]:
    """The channels to sum at once, and those of a vector; 0 where no vector divides them."""
    for tile in CHANNEL_TILES:
        if channels % tile == 0:
            return tile, LANES
    narrow, rest = divmod(channels, LEAST_LANES)
    return (0, 0) if rest else (LEAST_LANES * largest_divisor(narrow, MOST_NARROW), LEAST_LANES)


def _streams(schedule: Any, spatial: list[Any], reduced: list[Any]) -> bool:
    """Whether rows are long, and can be taken ``STREAMS`` at a time."""
    return (
        int(schedule.get(spatial[-1]).extent) >= LONG_ROW
        and int(schedule.get(spatial[-1]).extent) % LANES == 0
        and int(schedule.get(reduced[-1]).extent) % STREAMS == 0
    )


def _stream_rows(schedule: Any, spatial: list[Any], reduced: list[Any]) -> tuple[list[Any], Any]:
    """Schedules [.., reduced, channel]: a few rows at a time, sums in the cache. Job loops, first reduction."""
    channels = int(schedule.get(spatial[-1]).extent)
    others = math.prod(int(schedule.get(loop).extent) for loop in spatial[:-1])
    chunks = [c for c in range(LANES, STREAMED_CHANNELS + 1, LANES) if channels % c == 0]
    chunk = max((c for c in chunks if others * (channels // c) >= JOBS), default=LANES)
    outer, vector, lanes = schedule.split(spatial[-1], [None, chunk // LANES, LANES])
    step, row = schedule.split(reduced[-1], [None, STREAMS])
    schedule.reorder(*spatial[:-1], outer, *reduced[:-1], step, vector, row, lanes)
    schedule.unroll(row)
    schedule.vectorize(lanes)
    return [*spatial[:-1], outer], reduced[0] if len(reduced) > 1 else step


def _rows(schedule: Any, block: Any) -> None:
    """Schedules sums of [row, reduced]: sixteen partial results a row, then their combination."""
    spatial, reduced = _split_axes(schedule, block)
    count = 1
    for loop in reduced:
        count *= int(schedule.get(loop).extent)
    rows = 1
    for loop in spatial:
        rows *= int(schedule.get(loop).extent)
    single_output = len(schedule.get(block).writes) == 1
    if count % LANES == 0 and count >= 2 * LANES and single_output:
        fused = schedule.fuse(*reduced) if len(reduced) > 1 else reduced[0]
        for consumer in schedule.get_consumers(block):
            if not schedule.get_loops(consumer):  # a scalar: rfactor fails beside a block outside of all loops
                schedule.add_unit_loop(consumer)
        _, lanes = schedule.split(fused, [None, LANES])
        partial = schedule.rfactor(lanes, factor_axis=len(spatial))
        loops = schedule.get_loops(partial)
        schedule.reorder(*loops[: len(spatial)], loops[-1], loops[len(spatial)])
        loops = schedule.get_loops(partial)
        lane = next(lp for lp in loops[len(spatial) :] if int(schedule.get(lp).extent) == LANES)
        steps = next(lp for lp in loops[len(spatial) :] if not schedule.get(lp).same_as(schedule.get(lane)))
        schedule.reorder(steps, lane)
        schedule.vectorize(lane)
        if spatial and rows * count >= PARALLEL_ELEMENTS:
            outer = schedule.get_loops(partial)[: len(spatial)]
            schedule.parallel(schedule.fuse(*outer) if len(outer) > 1 else outer[0])
        schedule.decompose_reduction(partial, steps)
    elif spatial and rows * count >= PARALLEL_ELEMENTS:
        schedule.parallel(schedule.fuse(*spatial) if len(spatial) > 1 else spatial[0])
