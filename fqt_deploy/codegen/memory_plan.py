"""Memory of all intermediate values of a function: values that are never alive together share a block.

Kernels take arrays that begin where their memory begins, so a block holds one value at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Lifetime:
    """The steps between which a value needs its bytes.

    Attributes:
        size: number of bytes.
        first: step that writes it.
        last: last step that reads it; at least ``first``.
    """

    size: int
    first: int
    last: int


@dataclass(frozen=True)
class MemoryPlan:
    """Which block each value lies in.

    Attributes:
        block_of: number of a block, in the order of the lifetimes.
        blocks: bytes of each block.
        peak: most bytes alive at once: no plan can be smaller.
    """

    block_of: tuple[int, ...]
    blocks: tuple[int, ...]
    peak: int

    @property
    def size(self) -> int:
        """Number of bytes of all blocks."""
        return sum(self.blocks)


def plan_memory(lifetimes: Sequence[Lifetime]) -> MemoryPlan:
    """Place large values first, each into the smallest block that is free while it is alive, or into a new one.

    Greedy by size (Pisarchyk and Lee, "Efficient memory management for deep neural net inference", 2020).
    """
    block_of = [0] * len(lifetimes)
    blocks: list[int] = []
    held: list[list[Lifetime]] = []
    for i in sorted(range(len(lifetimes)), key=lambda i: (-lifetimes[i].size, lifetimes[i].first)):
        value = lifetimes[i]
        free = [b for b in range(len(blocks)) if not any(_together(value, other) for other in held[b])]
        if free:
            block_of[i] = min(free, key=blocks.__getitem__)
        else:
            block_of[i] = len(blocks)
            blocks.append(value.size)
            held.append([])
        held[block_of[i]].append(value)
    return MemoryPlan(tuple(block_of), tuple(blocks), _peak(lifetimes))


def _together(a: Lifetime, b: Lifetime) -> bool:
    return a.first <= b.last and b.first <= a.last


def _peak(lifetimes: Sequence[Lifetime]) -> int:
    changes: dict[int, int] = {}
    for value in lifetimes:
        changes[value.first] = changes.get(value.first, 0) + value.size
        changes[value.last + 1] = changes.get(value.last + 1, 0) - value.size
    alive = peak = 0
    for step in sorted(changes):
        alive += changes[step]
        peak = max(peak, alive)
    return peak
