"""Codes of kept channels as bit-planes over positions: a vector is sixteen kept channels, all along their positions.

What an element is computed from besides its position, such as the batch norm's factors of its channel, is gathered once
for a sample and sixteen channels instead of once for each position, except where rows are long.
"""

from __future__ import annotations

from typing import ClassVar

from tvm import s_tir, tirx

from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.generic.elementwise import LANES, PARALLEL_ELEMENTS, extents
from fqt_deploy.targets.cpu.generic.reduction import schedule_channels

MANY_KEPT = 256
"""Number of kept channels from which on rows are read one after another: sixteen of each would be a line from every
page.
"""


class QuantizePackChannelsRule:
    """Takes ``quantize_pack_channels`` with a multiple of 16 kept channels."""

    ops: ClassVar[frozenset[str]] = frozenset({"quantize_pack_channels"})

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """Codes, whatever was inlined into them, then their bits."""
        schedule = s_tir.Schedule(function)
        blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
        if len(blocks) != 2:
            return None
        codes, packing = blocks
        samples, positions, kept = extents(schedule, codes)
        if kept % LANES:
            return None
        sample, position, channel = schedule.get_loops(codes)
        outer, lanes = schedule.split(channel, [None, LANES])
        second, third = (position, outer) if kept >= MANY_KEPT else (outer, position)
        schedule.reorder(sample, second, third, lanes)
        schedule.vectorize(lanes)
        if samples * positions * kept >= PARALLEL_ELEMENTS:
            schedule.parallel(schedule.fuse(sample, second))
        schedule_channels(schedule, packing)
        return schedule.mod["main"]
