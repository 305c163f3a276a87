"""Memory of all intermediate values of a function: values that are never alive together share bytes of one block."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 256
"""A value begins at a multiple of so many bytes: four cache lines, as vectors and copies to a GPU want it."""


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

    def overlaps(self, other: Lifetime) -> bool:
        """Whether both are alive at some step."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class MemoryPlan:
    """Where in the block each value lies.

    Attributes:
        offsets: first byte of each value, in the order of the lifetimes.
        size: number of bytes of the block.
        peak: most bytes alive at once: no plan can be smaller.
    """

    offsets: tuple[int, ...]
    size: int
    peak: int


def plan_memory(lifetimes: Sequence[Lifetime]) -> MemoryPlan:
    """Place large values first, each into the smallest gap between those that are placed and alive with it.

    Greedy by size for offsets (Pisarchyk and Lee, "Efficient memory management for deep neural net inference", 2020).
    """
    offsets = [0] * len(lifetimes)
    placed: list[tuple[int, int, int]] = []  # where they begin and end, and which they are, in order
    for i in sorted(range(len(lifetimes)), key=lambda i: (-lifetimes[i].size, lifetimes[i].first)):
        value = lifetimes[i]
        extent = -(-value.size // ALIGNMENT) * ALIGNMENT
        gaps: list[tuple[int, int]] = []  # how large they are, and where they begin
        behind = 0
        for begin, end, other in placed:
            if value.overlaps(lifetimes[other]):
                if begin - behind >= extent:
                    gaps.append((begin - behind, behind))
                behind = max(behind, end)
        offsets[i] = min(gaps)[1] if gaps else behind
        insort(placed, (offsets[i], offsets[i] + extent, i))
    size = max((end for _, end, _ in placed), default=0)
    return MemoryPlan(tuple(offsets), size, _peak(lifetimes))


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
