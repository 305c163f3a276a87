"""Element-wise kernels that read along another axis than they write: narrow columns, one after another.

A row of the result is a column of the operand: each element in a cache line of its own, all of them in few sets of the
first-level cache, so lines are gone before the next row needs them. Sixteen columns are read to their end instead.
"""

from __future__ import annotations

from math import prod
from typing import Any, ClassVar

from tvm import s_tir, tirx

from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.generic.elementwise import LANES, PARALLEL_ELEMENTS, extents, is_spatial


class TranspositionRule:
    """Takes one element-wise block whose operands' last axis is not the result's."""

    ops: ClassVar[frozenset[str]] = frozenset()

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """Sixteen elements of the result's last axis are vectors; the operands' last axis is the loop around them."""
        schedule = s_tir.Schedule(function)
        blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
        if len(blocks) != 1 or not is_spatial(schedule, blocks[0]):
            return None
        axis, sizes = _read_axis(schedule.get(blocks[0])), extents(schedule, blocks[0])
        if axis is None or sizes[-1] % LANES:
            return None
        *others, last = schedule.get_loops(blocks[0])
        along = others.pop(axis)
        outer, inner = schedule.split(last, [None, LANES])
        schedule.reorder(*others, outer, along, inner)
        schedule.vectorize(inner)
        if prod(sizes) >= PARALLEL_ELEMENTS:
            schedule.parallel(schedule.fuse(*others, outer) if others else outer)
        return schedule.mod["main"]


def _read_axis(block: Any) -> int | None:
    """Which axis of the result, but for the last, is the last one of the largest operand, if one is."""
    variables = [axis.var for axis in block.iter_vars]
    size = prod(int(d) for d in block.writes[0].source.shape)
    for region in block.reads:
        index = region.region[-1].min if len(region.region) else None
        if prod(int(d) for d in region.source.shape) >= size:
            found = next((i for i, v in enumerate(variables) if index is not None and v.same_as(index)), None)
            if found is not None:
                return found if found < len(variables) - 1 else None
    return None
