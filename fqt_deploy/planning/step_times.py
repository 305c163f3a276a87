"""Times of compiled steps, taken in turn on this machine: whole, and by the layers that a choice is for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fqt_deploy.core.manifest import KernelInfo
from fqt_deploy.profiling.machine import OtherWork
from fqt_deploy.profiling.measure import made_up_batch
from fqt_deploy.runtime import load
from fqt_deploy.runtime.kernel_clock import KernelClock

ROUNDS = 6
"""How often steps take turns: a machine that gets slower meanwhile does so for all of them."""
QUANTILE = 0.25
"""The part of the times that are shorter than the one that counts: machines are disturbed, never helped."""
_LEAST_STEPS = 2
_LEAST_S = 0.25
_MOST_STEPS = 60

Place = tuple[str, ...]
"""A layer, or two between which a kernel of another module lies."""


@dataclass
class StepTime:
    """What was measured of one step.

    Attributes:
        kernels: its kernel calls, in order.
        steps: seconds of whole steps, without a clock for the kernels.
        calls: seconds of every call, for each step with such a clock.
    """

    kernels: tuple[KernelInfo, ...]
    steps: list[float] = field(default_factory=list)
    calls: list[NDArray[np.float64]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Seconds of a whole step."""
        return float(np.quantile(self.steps, QUANTILE))

    def places(self, layers: Sequence[str]) -> dict[Place, float]:
        """Seconds of the kernels by the place among ``layers`` that they lie at, summed up.

        What belongs to another module, such as batch normalization, lies between the layer before and the one behind it
        in the order of the step: what it reads and writes depends on these.
        """
        typical = np.quantile(np.stack(self.calls), QUANTILE, axis=0)
        owners = [kernel.layer if kernel.layer in layers else None for kernel in self.kernels]
        before, behind = _latest(owners), _latest(owners[::-1])[::-1]
        found: dict[Place, float] = {}
        for own, previous, following, seconds in zip(owners, before, behind, typical, strict=True):
            place = (own,) if own else tuple(sorted({each for each in (previous, following) if each}))
            found[place] = found.get(place, 0.0) + float(seconds)
        return found


def _latest(owners: Sequence[str | None]) -> list[str | None]:
    """For each place the last owner up to there."""
    found: list[str | None] = []
    for owner in owners:
        found.append(owner or (found[-1] if found else None))
    return found


@dataclass(frozen=True)
class Times:
    """The times of several steps, and how busy the machine was.

    Attributes:
        steps: by the name of the step.
        other_cores: number of cores that other processes used meanwhile; None if unknown.
    """

    steps: Mapping[str, StepTime]
    other_cores: float | None


def time_steps(artifacts: Mapping[str, Path], tell: Callable[[str], None]) -> Times:
    """Run the steps of ``artifacts``, by name, in turn; what is in the folders stays as it is."""
    found: dict[str, StepTime] = {}
    with OtherWork() as others:
        for turn in range(ROUNDS):
            for number, (name, folder) in enumerate(artifacts.items(), start=1):
                tell(f"timing step {number} of {len(artifacts)}, round {turn + 1} of {ROUNDS}")
                session = load(folder)
                clock, batch = KernelClock(session), made_up_batch(session.manifest)
                measured = found.setdefault(name, StepTime(session.manifest.kernels))
                session.step(batch)
                begun, done = time.perf_counter(), 0
                while done < _LEAST_STEPS or (time.perf_counter() - begun < _LEAST_S and done < _MOST_STEPS):
                    start = time.perf_counter()
                    session.step(batch)
                    measured.steps.append(time.perf_counter() - start)
                    with clock:
                        session.step(batch)
                        measured.calls.append(clock.take().seconds)
                    done += 1
    return Times(found, others.cores)


def change(step: StepTime, base: StepTime, layers: Sequence[str], changed: Sequence[str]) -> dict[str, float]:
    """Seconds that each of the ``changed`` layers takes more in ``step`` than in ``base``, by path.

    Of what lies between two layers the one that changed answers for all, and each for half where both did.
    """
    seconds = dict.fromkeys(changed, 0.0)
    ours, theirs = step.places(layers), base.places(layers)
    for place in {**ours, **theirs}:
        responsible = [path for path in place if path in seconds]
        for path in responsible:
            seconds[path] += (ours.get(place, 0.0) - theirs.get(place, 0.0)) / len(responsible)
    return seconds
