"""One block of memory for all intermediate values of a function: values that are never alive together share bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 64
"""Bytes; kernels load whole cache lines."""


@dataclass(frozen=True)
class Lifetime:
    """When a value needs its bytes.

    Attributes:
        size: bytes.
        first: step that writes it.
        last: last step that reads it; at least ``first``.
    """

    size: int
    first: int
    last: int


@dataclass(frozen=True)
class MemoryPlan:
    """Where each value lies.

    Attributes:
        offsets: bytes from the start of the block, in the order of the lifetimes.
        size: bytes of the block.
        peak: most bytes alive at once: no plan can be smaller.
    """

    offsets: tuple[int, ...]
    size: int
    peak: int


def plan_memory(lifetimes: Sequence[Lifetime]) -> MemoryPlan:
    """Place large values first, each into the smallest gap between those that are alive at the same time.

    Greedy by size (Pisarchyk and Lee, "Efficient memory management for deep neural net inference", 2020).
    """
    offsets = [0] * len(lifetimes)
    placed: list[int] = []
    for i in sorted(range(len(lifetimes)), key=lambda i: (-lifetimes[i].size, lifetimes[i].first)):
        value = lifetimes[i]
        alive = [(offsets[j], lifetimes[j].size) for j in placed if _together(value, lifetimes[j])]
        offsets[i] = _best_gap(value.size, sorted(alive))
        placed.append(i)
    size = max((offset + _aligned(value.size) for offset, value in zip(offsets, lifetimes, strict=True)), default=0)
    return MemoryPlan(tuple(offsets), size, _peak(lifetimes))


def _together(a: Lifetime, b: Lifetime) -> bool:
    return a.first <= b.last and b.first <= a.last


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _best_gap(size: int, alive: list[tuple[int, int]]) -> int:
    """Offset of the tightest gap of ``size`` bytes between ``(offset, size)`` pairs, or behind them all."""
    best: tuple[int, int] | None = None
    end = 0
    for offset, extent in alive:
        if offset - end >= _aligned(size) and (best is None or offset - end < best[0]):
            best = (offset - end, end)
        end = max(end, offset + _aligned(extent))
    return end if best is None else best[1]


def _peak(lifetimes: Sequence[Lifetime]) -> int:
    changes: dict[int, int] = {}
    for value in lifetimes:
        changes[value.first] = changes.get(value.first, 0) + _aligned(value.size)
        changes[value.last + 1] = changes.get(value.last + 1, 0) - _aligned(value.size)
    alive = peak = 0
    for step in sorted(changes):
        alive += changes[step]
        peak = max(peak, alive)
    return peak
