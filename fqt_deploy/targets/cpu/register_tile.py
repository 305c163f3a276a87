"""Schedules of register tiles: accumulators stay in vector registers over the whole contraction."""

from __future__ import annotations

from typing import Any

from tvm import s_tir, te, tirx

from fqt_deploy.targets.cpu.generic.elementwise import PARALLEL_ELEMENTS, schedule_spatial


def placeholders(function: tirx.PrimFunc) -> list[te.Tensor]:
    """TE placeholders like the operands of ``function``."""
    outputs = int(function.attrs["fqt.outputs"])
    return [
        te.placeholder([int(d) for d in p.shape], str(p.dtype), name=f"operand{i}")
        for i, p in enumerate(function.params[:-outputs])
    ]


def lanes_of(channels: int) -> int | None:
    """Channels in a vector that divides them all: 16, 8 or 4; None where vectors would not be worth it."""
    return next((lanes for lanes in (16, 8, 4) if channels % lanes == 0), None)


def largest_divisor(extent: int, limit: int) -> int:
    """The largest divisor of ``extent`` that is at most ``limit``."""
    return max(d for d in range(1, limit + 1) if extent % d == 0)


def schedule_tile(
    schedule: Any, total: Any, result: Any, rows: int, panels: int, unrolled: int, inner_axes: int, lane_count: int = 16
) -> None:
    """Tile ``result`` [..., row, channel] and accumulate ``total`` at the tile.

    Args:
        schedule: being built.
        total: block of the contraction; axes are ``result``'s, ``inner_axes`` more before the channel, then reductions.
        result: block that finishes it, element by element.
        rows: positions in one tile.
        panels: vectors of channels in one tile.
        unrolled: number of leading reduction axes to keep outermost, before the last one.
        inner_axes: spatial axes of ``total`` between row and channel, such as bit-planes.
        lane_count: channels of a vector.
    """
    *outer, row, channel = schedule.get_loops(result)
    row_outer, row_inner = schedule.split(row, [None, rows])
    panel, vector, lane = schedule.split(channel, [None, panels, lane_count])
    schedule.reorder(*outer, row_outer, panel, row_inner, vector, lane)
    schedule.compute_at(total, panel, preserve_unit_loops=True)
    loops = schedule.get_loops(total)
    first = 2 * len(outer) + 2  # the loops of the tile, then one of extent 1 for each outer axis
    row_loop = loops[first]
    planes = loops[first + 1 : first + 1 + inner_axes]
    channel_loop = loops[first + 1 + inner_axes]
    reductions = loops[first + 2 + inner_axes :]
    vectors, lanes = schedule.split(channel_loop, [panels, lane_count])
    schedule.reorder(*reductions, row_loop, *planes, vectors, lanes)
    schedule.vectorize(lanes)
    for loop in (row_loop, *planes, vectors):
        schedule.unroll(loop)
    for loop in reductions[1:-1][:unrolled]:
        schedule.unroll(loop)
    schedule.vectorize(lane)
    schedule.unroll(vector)
    schedule.unroll(row_inner)
    schedule.parallel(schedule.fuse(*outer, row_outer) if outer else row_outer)
    schedule.decompose_reduction(total, reductions[0])


def schedule_helpers(schedule: Any, names: tuple[str, ...]) -> None:
    """Vectorize the small stages around the product; reductions among them only in parallel."""
    for name in names:
        block = schedule.get_sblock(name)
        axes = schedule.get(block).iter_vars
        if all(int(axis.iter_type) == tirx.IterVar.DataPar for axis in axes):
            schedule_spatial(schedule, block)
            continue
        loops = schedule.get_loops(block)
        spatial = [lp for lp, a in zip(loops, axes, strict=True) if int(a.iter_type) == tirx.IterVar.DataPar]
        size = 1
        for loop in loops:
            size *= int(schedule.get(loop).extent)
        if spatial and size >= PARALLEL_ELEMENTS:
            schedule.parallel(schedule.fuse(*spatial) if len(spatial) > 1 else spatial[0])


def schedule_padding(schedule: Any, block: Any) -> None:
    """Copy the inside of an image [sample, row, column, ...] without asking for each element whether it is inside."""
    sample, row, column, *_ = schedule.get_loops(block)
    for loop in (row, column):
        schedule.annotate(loop, "pragma_loop_partition_hint", True)
    schedule.parallel(sample)


def new_schedule(tensors: list[te.Tensor]) -> Any:
    """A schedule of the loop nests that compute the last tensors from the first ones."""
    return s_tir.Schedule(te.create_prim_func(tensors))
