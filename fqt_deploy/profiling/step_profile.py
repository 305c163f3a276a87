"""The profile of a step: what was measured, on which machine, in one JSON file that any machine can show."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import KernelInfo, LayerDecision
from fqt_deploy.core.step_notes import StepNotes
from fqt_deploy.profiling.ceilings import Ceilings
from fqt_deploy.profiling.machine import Machine
from fqt_deploy.runtime.files import read_file, replace_file

FORMAT = 1
BUSY_CORES = 0.1
"""Number of cores that other processes may use before times are void: parallel kernels wait for the slowest thread."""
UNSTEADY = 0.25
"""Share of the median by which the quarters of the steps' times may lie apart."""


@dataclass(frozen=True)
class TorchTimes:
    """PyTorch's seconds on the same machine and batch.

    Attributes:
        steps: seconds of a whole step with the optimizer, by mode: ``fp32``, ``bf16``, ``compile``.
        layers: seconds by mode, ``fp32`` or ``bf16``, and then ``LAYER DIRECTION``.
        other_cores: number of cores that other processes used meanwhile; None if unknown.
    """

    steps: Mapping[str, float] = field(default_factory=dict)
    layers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    other_cores: float | None = None

    def layer(self, mode: str, layer: str, direction: str) -> float | None:
        """Seconds of one direction of a layer; None where PyTorch has no counterpart or was not measured."""
        return self.layers.get(mode, {}).get(f"{layer} {direction}")


@dataclass(frozen=True)
class TimedStep:
    """One step in time, all in nanoseconds of one clock.

    Attributes:
        begin: when it began.
        end: when its loss was there.
        kernels: begin and end of each kernel call.
    """

    begin: int
    end: int
    kernels: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class StepProfile:
    """What was measured of an artifact's step.

    Attributes:
        name: the model's name, or what the person calls the profile.
        machine: where it was measured.
        target: what the code is for, as in the manifest.
        versions: of the packages that compiled it.
        options: those that change numbers.
        optimizer: the optimizer's name.
        batch: number of samples in a step.
        layers: the decisions.
        kernels: the kernel calls of a step, in order.
        seconds: seconds of each call, the mean over steps of middling length.
        steps: seconds of whole steps, without a clock for the kernels.
        timed: the steps whose kernels were timed, the latest ones.
        timed_seconds: seconds of all of these.
        ceilings: what the machine reaches at most.
        other_cores: number of cores that other processes used; None if unknown.
        notes: the values of the step and when they are alive.
        state_bytes: bytes of parameters, buffers and optimizer.
        loads: begin and end of each batch that was loaded meanwhile, on the steps' clock.
        torch: PyTorch's times; empty if they were not asked for.
        passes: for each layer, pass by pass, the lines of the graph before and after, where it changed them.
        statistics: rows of training statistics by name of the column.
    """

    name: str
    machine: Machine
    target: Mapping[str, str]
    versions: Mapping[str, str]
    options: Mapping[str, Any]
    optimizer: str
    batch: int
    layers: tuple[LayerDecision, ...]
    kernels: tuple[KernelInfo, ...]
    seconds: tuple[float, ...]
    steps: tuple[float, ...]
    timed: tuple[TimedStep, ...]
    timed_seconds: tuple[float, ...]
    ceilings: Ceilings
    other_cores: float | None
    notes: StepNotes | None
    state_bytes: int
    loads: tuple[tuple[int, int], ...] = ()
    torch: TorchTimes = field(default_factory=TorchTimes)
    passes: Mapping[str, tuple[tuple[str, str, str], ...]] = field(default_factory=dict)
    statistics: tuple[Mapping[str, Any], ...] = ()

    @property
    def step_s(self) -> float:
        """Median seconds of a whole step."""
        return statistics.median(self.steps)

    @property
    def kernels_s(self) -> float:
        """Sum of the kernels' seconds."""
        return sum(self.seconds)

    @property
    def doubts(self) -> list[str]:
        """Why the times may be void, a sentence each; none on a quiet machine."""
        found = []
        if self.other_cores is not None and self.other_cores > BUSY_CORES:
            found.append(f"other processes used {self.other_cores:.1f} cores meanwhile")
        if self.torch.other_cores is not None and self.torch.other_cores > BUSY_CORES:
            found.append(f"other processes used {self.torch.other_cores:.1f} cores while PyTorch was measured")
        ordered = sorted(self.steps)
        spread = ordered[3 * len(ordered) // 4] - ordered[len(ordered) // 4]
        if len(ordered) >= 3 and spread > UNSTEADY * self.step_s:
            found.append(f"half of the steps differ by {100 * spread / self.step_s:.0f} % of their median")
        return found

    def named(self, name: str) -> StepProfile:
        """The same profile under another name."""
        return replace(self, name=name)

    def save(self, path: Path) -> None:
        """Write the profile to a JSON file, whole or not at all; FQT508 if that cannot be done."""
        replace_file(path, json.dumps({"fqt_profile": FORMAT, **asdict(self)}).encode() + b"\n")


def read_profile(path: Path) -> StepProfile:
    """The profile that ``StepProfile.save`` wrote.

    Raises:
        FqtError: FQT502 if the file is none or is damaged, FQT503 if another version wrote it.
    """
    try:
        data = json.loads(read_file(path))
        version = data.pop("fqt_profile")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise FqtError(f"{path} is no profile", code="FQT502", hint="fqt-profile ARTIFACT --save writes one") from None
    if version != FORMAT:
        raise FqtError(f"{path} has format {version!r}; this version reads {FORMAT}", code="FQT503")
    try:
        return _profile(data)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise FqtError(f"{path} is damaged: {error}", code="FQT502") from None


def _profile(data: dict[str, Any]) -> StepProfile:
    notes = data["notes"]
    built = StepProfile(
        **{
            **data,
            "machine": Machine(**data["machine"]),
            "layers": tuple(LayerDecision(**layer) for layer in data["layers"]),
            "kernels": tuple(KernelInfo(**kernel) for kernel in data["kernels"]),
            "seconds": tuple(map(float, data["seconds"])),
            "steps": tuple(map(float, data["steps"])),
            "timed": tuple(
                TimedStep(int(s["begin"]), int(s["end"]), tuple((int(b), int(e)) for b, e in s["kernels"]))
                for s in data["timed"]
            ),
            "timed_seconds": tuple(map(float, data["timed_seconds"])),
            "ceilings": Ceilings(**data["ceilings"]),
            "notes": None if notes is None else StepNotes.from_json(json.dumps(notes).encode(), len(data["kernels"])),
            "loads": tuple((int(b), int(e)) for b, e in data["loads"]),
            "torch": TorchTimes(**data["torch"]),
            "passes": {layer: tuple((p, b, a) for p, b, a in found) for layer, found in data["passes"].items()},
            "statistics": tuple(data["statistics"]),
        }
    )
    calls = len(built.kernels)
    if len(built.seconds) != calls or any(len(step.kernels) != calls for step in built.timed) or not built.steps:
        raise ValueError("its kernels and their times are not equally many")
    return built
