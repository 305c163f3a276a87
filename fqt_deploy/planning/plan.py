"""A plan of a model's layers: the choices that were measured, the best of them under a budget, how they turned out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fqt_deploy.planning.choices import Choice
from fqt_deploy.profiling.machine import Machine
from fqt_deploy.profiling.step_profile import BUSY_CORES

WITHIN = 1.02
"""Measured time over the budget that counts as within it: as much as two measurements of one step differ."""
ASKED, ALL_FP32, CHOSEN = "asked for", "fp32", "chosen"
"""Names of measured steps: the one that the options ask for, with all planned layers in fp32, with the plan."""


@dataclass(frozen=True)
class Budget:
    """The bound of a plan, as a share of the step that the options ask for; one of them is None.

    Attributes:
        time: at most this share of its time, with the least noise.
        noise: at most this share of its noise, in the least time.
    """

    time: float | None = 1.0
    noise: float | None = None


@dataclass(frozen=True)
class PlannedLayer:
    """The measurements of one layer.

    Attributes:
        path: module path.
        seconds: of its kernels and of its share of those between layers, by choice.
        noise: by choice.
    """

    path: str
    seconds: Mapping[Choice, float]
    noise: Mapping[Choice, float]


@dataclass(frozen=True)
class Point:
    """One plan of the frontier, or the step that was asked for.

    Attributes:
        choices: the choice of each layer, in forward order.
        seconds: of a step, as predicted.
        noise: sum of the layers'.
    """

    choices: tuple[Choice, ...]
    seconds: float
    noise: float


@dataclass(frozen=True)
class GradientBits:
    """The measurements of one number of bits of all gradients.

    Attributes:
        bits: of a gradient.
        seconds: of the chosen step with these, and with plain SGD for its optimizer.
        noise: of the gradients of all 1-bit layers' weights together.
        layers: of each by path.
    """

    bits: int
    seconds: float
    noise: float
    layers: Mapping[str, float]


@dataclass(frozen=True)
class Plan:
    """A plan with all that it was chosen by.

    Attributes:
        name: the model's name.
        machine: where times were measured.
        batch: number of samples of a step.
        offered: the choices, from the least noise to the most.
        budget: the bound.
        layers: the layers that there were choices for, in forward order.
        frontier: the plans that no other one beats in time and noise, the fastest first.
        asked: the step that the options ask for.
        chosen: the best plan under the budget.
        measured: measured seconds of whole steps: ``asked for``, ``chosen``, and with all of the layers in ``fp32``.
        measured_noise: noise of the model's outputs with all layers quantized at once: ``asked for`` and ``chosen``.
        include: globs that made the layers candidates.
        excluded: other layers that the options exclude.
        other_cores: number of cores that other processes used while steps were timed; None if unknown.
        gradients: measurements of the chosen step by bits of a gradient; empty if none were asked for.
        gradient_bits: that the options ask for.
        weight_bits: of all layers that are not in fp32, as the options ask for.
    """

    name: str
    machine: Machine
    batch: int
    offered: tuple[Choice, ...]
    budget: Budget
    layers: tuple[PlannedLayer, ...]
    frontier: tuple[Point, ...]
    asked: Point
    chosen: Point
    measured: Mapping[str, float]
    measured_noise: Mapping[str, float]
    include: tuple[str, ...]
    excluded: tuple[str, ...]
    other_cores: float | None
    gradients: tuple[GradientBits, ...] = ()
    gradient_bits: int = 0
    weight_bits: int = 1

    @property
    def doubts(self) -> list[str]:
        """Why the times may be void, a sentence each."""
        if self.other_cores is None or self.other_cores <= BUSY_CORES:
            return []
        return [f"other processes used {self.other_cores:.1f} cores meanwhile: times are rough"]
