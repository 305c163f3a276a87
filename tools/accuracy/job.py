"""One training run: the choices that make it, and what is known after it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """Everything that decides the outcome of a run.

    Attributes:
        data: name of the data set; ``digits``, or the last part of its path.
        network: one of ``NETWORKS``.
        phase: one of ``task.PHASES``.
        row: one of ``ROWS``.
        optimizer: one of ``OPTIMIZERS``.
        lr: initial learning rate of all parameters; it falls to 0 along half a cosine.
        steps: how many.
        batch: samples in a step.
        train_images: how many training images are used; None for all.
        seed: the seed of weights that are initialized, batches, augmentation and the step's own random numbers.
        pretrained: digest of the weights it starts from; None where it starts from random ones.
        target: what the step is compiled for.
    """

    data: str
    network: str
    phase: str
    row: str
    optimizer: str
    lr: float
    steps: int
    batch: int
    train_images: int | None
    seed: int
    pretrained: str | None = None
    target: str = "cpu"

    @property
    def key(self) -> str:
        """Short name of this job, for its files."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]
        return f"{self.network}-{self.phase}-{self.row}-{digest}"

    @property
    def title(self) -> str:
        """The name of the job in progress lines."""
        return f"{self.network} {self.phase} {self.row} {self.optimizer} lr {self.lr:g} seed {self.seed}"

    def without_seed(self) -> Job:
        """The same for any seed: runs with equal values of this are repetitions of each other."""
        return replace(self, seed=0)


@dataclass
class Record:
    """The record of what a run gave.

    Attributes:
        job: the job that was run.
        revision: the revision of the repository; it ends in ``+`` if files differed from the commit.
        losses: step and mean training loss of the steps up to it, since the entry before.
        val: step and accuracy on the validation images after it.
        test: accuracy on the test images after the last step.
        seconds: spent in steps; says little unless the machine was otherwise idle.
        threads: number of threads of a step.
        weights: digest of the weights after the last step.
    """

    job: Job
    revision: str
    losses: list[tuple[int, float]] = field(default_factory=list)
    val: list[tuple[int, float]] = field(default_factory=list)
    test: float | None = None
    seconds: float = 0.0
    threads: int = 0
    weights: str | None = None

    @property
    def final_val(self) -> float:
        """Accuracy on the validation images after the last step."""
        return self.val[-1][1]

    def to_line(self) -> str:
        """The record as one line of JSON."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Record:
        """The record that ``to_line`` wrote as ``line``."""
        values: dict[str, Any] = json.loads(line)
        pairs = {name: [(step, value) for step, value in values[name]] for name in ("losses", "val")}
        return cls(**{**values, **pairs, "job": Job(**values["job"])})


def read_records(path: Path) -> list[Record]:
    """All records of a file; none if it is not there."""
    return [Record.from_line(line) for line in path.read_text().splitlines()] if path.exists() else []


def append_record(path: Path, record: Record) -> None:
    """Add one line to a file; several processes may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(record.to_line())  # one write: appended whole
