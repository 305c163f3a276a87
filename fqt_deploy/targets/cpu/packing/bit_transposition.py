"""Bits of many words gathered into words of sixteen lanes, one vector operation for sixteen bits."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from fqt_deploy.ops.lib.counter_random import uint32
from fqt_deploy.ops.lib.packed_words import WORD
from fqt_deploy.targets.cpu.generic.elementwise import PARALLEL_ELEMENTS

ONE, ZERO = uint32(1), uint32(0)


def lane_bit(word: Any, position: Any, k: Any) -> Any:
    """A uint32 with bit ``k`` set if bit ``position`` of the int32 expression ``word`` is.

    With the same word for all lanes and a position for each, this is a test against a constant mask.
    """
    chosen = tirx.reinterpret("uint32", word) & (ONE << position.astype("uint32"))
    return tirx.Select(chosen.equal(ZERO), ZERO, ONE << k.astype("uint32"))


def collect_lanes(schedule: Any, collect: Any, finish: Any, elements: int) -> None:
    """Keep the words of sixteen lanes in a register while their 32 bits are collected.

    Args:
        schedule: being built.
        collect: the block that sums ``lane_bit`` over ``k``, its last axis; the lanes are the axis before.
        finish: the block that reads each sum once; its last two axes are any and the lanes.
        elements: words in all.
    """
    *outer, inner, lane = schedule.get_loops(finish)
    schedule.compute_at(collect, inner)
    *_, lanes, k = schedule.get_loops(collect)
    schedule.reorder(k, lanes)
    schedule.vectorize(lanes)
    schedule.unroll(k)
    schedule.vectorize(lane)
    if elements >= PARALLEL_ELEMENTS // WORD:
        schedule.parallel(schedule.fuse(*outer) if len(outer) > 1 else outer[0])
    schedule.decompose_reduction(collect, k)
