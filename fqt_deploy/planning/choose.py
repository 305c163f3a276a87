"""The best choice for every layer under a budget: a multiple-choice knapsack, solved for all budgets at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TICKS = 20_000
"""Number of equal parts that the range of times is divided into; sums are exact but for rounding to these."""


@dataclass(frozen=True)
class Pick:
    """One choice for every layer.

    Attributes:
        time: sum of the choices' times.
        noise: sum of their noises.
        choices: number of the choice of each layer.
    """

    time: float
    noise: float
    choices: tuple[int, ...]


def frontier(times: Sequence[Sequence[float]], noises: Sequence[Sequence[float]]) -> list[Pick]:
    """Every pick that no other one beats in time and noise, the fastest first.

    Args:
        times: of each layer, by choice.
        noises: likewise.

    Returns:
        The picks; of those whose times are equal to ``TICKS`` parts of the range of sums one with the least noise.
    """
    least = [min(each) for each in times]
    span = sum(max(each) - low for each, low in zip(times, least, strict=True))
    tick = span / TICKS if span > 0 else 1.0
    best = np.zeros(1)
    taken: list[NDArray[np.int16]] = []
    spent: list[list[int]] = []
    for layer, low, noise in zip(times, least, noises, strict=True):
        ticks = [round((time - low) / tick) for time in layer]
        grown = np.full(len(best) + max(ticks), np.inf)
        choice = np.zeros(len(grown), np.int16)
        for number, (cost, own) in enumerate(zip(ticks, noise, strict=True)):
            there = slice(cost, cost + len(best))
            better = best + own < grown[there]
            grown[there] = np.where(better, best + own, grown[there])
            choice[there] = np.where(better, number, choice[there])
        best = grown
        taken.append(choice)
        spent.append(ticks)
    found: list[Pick] = []
    lowest = np.inf
    for total in range(len(best)):
        if best[total] < lowest:
            lowest = best[total]
            found.append(_pick(total, taken, spent, times, noises))
    return unbeaten(found)


def _pick(
    total: int,
    taken: Sequence[NDArray[np.int16]],
    spent: Sequence[Sequence[int]],
    times: Sequence[Sequence[float]],
    noises: Sequence[Sequence[float]],
) -> Pick:
    choices: list[int] = []
    for choice, ticks in zip(reversed(taken), reversed(spent), strict=True):
        number = int(choice[total])
        choices.append(number)
        total -= ticks[number]
    choices.reverse()
    time = sum(each[number] for each, number in zip(times, choices, strict=True))
    noise = sum(each[number] for each, number in zip(noises, choices, strict=True))
    return Pick(time, noise, tuple(choices))


def unbeaten(picks: Sequence[Pick]) -> list[Pick]:
    """The picks that no other one of them beats, in order of time."""
    found: list[Pick] = []
    for pick in sorted(picks, key=lambda each: (each.time, each.noise)):
        if not found or pick.noise < found[-1].noise:
            found.append(pick)
    return found


def least_noise(picks: Sequence[Pick], time: float) -> Pick | None:
    """The pick with the least noise in at most ``time``; None if none is as fast."""
    fitting = [pick for pick in picks if pick.time <= time]
    return min(fitting, key=lambda pick: pick.noise, default=None)


def least_time(picks: Sequence[Pick], noise: float) -> Pick | None:
    """The fastest pick with at most this ``noise``; None if all have more."""
    fitting = [pick for pick in picks if pick.noise <= noise]
    return min(fitting, key=lambda pick: pick.time, default=None)
