"""Loops without a reduction: vectorized along the last axis, parallel along the others."""

from __future__ import annotations

from typing import Any, ClassVar

from tvm import s_tir, tirx

from fqt_deploy.targets.cpu.features import CpuFeatures

LANES = 16
"""Number of elements of one vector operation; narrower machines split it."""
LEAST_LANES = 8
"""Number of elements of the narrowest vector operation that rows are cut into before all loops are fused: a vector that
crosses rows gathers what belongs to a channel.
"""
PARALLEL_ELEMENTS = 65536
"""Number of elements below which a launch (about 7 us) costs more than the second thread saves."""


class ElementwiseRule:
    """Schedules any function whose blocks have spatial axes only."""

    ops: ClassVar[frozenset[str]] = frozenset()

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """Returns the scheduled function, or None if one of its blocks is a reduction."""
        schedule = s_tir.Schedule(function)
        blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
        if any(not is_spatial(schedule, block) for block in blocks):
            return None
        for block in blocks:
            schedule_spatial(schedule, block)
        return schedule.mod["main"]


def is_spatial(schedule: Any, block: Any) -> bool:
    """Whether all axes of ``block`` are spatial."""
    return all(int(axis.iter_type) == tirx.IterVar.DataPar for axis in schedule.get(block).iter_vars)


def extents(schedule: Any, block: Any) -> list[int]:
    """Extents of a block's axes."""
    return [int(axis.dom.extent) for axis in schedule.get(block).iter_vars]


def schedule_spatial(schedule: Any, block: Any) -> None:
    """Vectorize and parallelize one block with spatial axes only."""
    loops = schedule.get_loops(block)
    sizes = extents(schedule, block)
    total = 1
    for size in sizes:
        total *= size
    if not loops or total < LANES:
        return
    lanes = next((lanes for lanes in (LANES, LEAST_LANES) if sizes[-1] % lanes == 0), None)
    if lanes is not None:
        outer, inner = schedule.split(loops[-1], [None, lanes])
        rest = [*loops[:-1], outer]
    elif total % LANES == 0:
        fused = schedule.fuse(*loops) if len(loops) > 1 else loops[0]
        outer, inner = schedule.split(fused, [None, LANES])
        rest = [outer]
    else:
        rest, inner = loops[:-1], None
    if inner is not None:
        schedule.vectorize(inner)
    if rest and total >= PARALLEL_ELEMENTS:
        fused = schedule.fuse(*rest) if len(rest) > 1 else rest[0]
        schedule.parallel(fused)
