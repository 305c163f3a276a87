"""Epochs over a source of data, with a checkpoint after each."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import Variant
from fqt_deploy.runtime.choose_variant import batch_sizes
from fqt_deploy.runtime.group import Group
from fqt_deploy.runtime.load_ahead import LoaderTime, load_ahead
from fqt_deploy.runtime.preparation import Prepared
from fqt_deploy.runtime.session import Session

_UNSIGNED = 2**64 - 1
PLACE = "place"
"""Key of a run's place in the data in the metadata of checkpoints that several processes write."""


@dataclass(frozen=True)
class Schedule:
    """What becomes of the learning rates over all steps of a run.

    Attributes:
        cosine: they fall along a half cosine after the warm-up.
        warmup: number of steps in which they rise from next to nothing, along a line.
    """

    cosine: bool = False
    warmup: int = 0

    def factor(self, done: int, total: int) -> float:
        """What the initial rates are multiplied with in the step after ``done`` of ``total``."""
        if done < self.warmup:
            return (done + 1) / (self.warmup + 1)
        if not self.cosine:
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (done - self.warmup) / max(1, total - self.warmup)))

    @property
    def is_constant(self) -> bool:
        """Whether the rates stay as they are."""
        return not self.cosine and not self.warmup


@dataclass
class Progress:
    """What goes on beside the steps of a run.

    Attributes:
        begin: called before each step.
        show: called after each step with steps done, epoch from 0, and loss.
        stopped: asked after each step whether to end there.
        ended: called after each whole epoch with its number from 0; returns whether to end there.
        owed: asked before the first step whether ``ended`` was not called for the epoch before it, in whose last step
            an earlier run was stopped.
        kept: text that the checkpoint keeps, as the session's metadata.
        loader: how long loading took.
    """

    show: Callable[[int, int, float], None] = lambda *_: None
    stopped: Callable[[], bool] = lambda: False
    ended: Callable[[int], bool] = lambda _: False
    owed: Callable[[int], bool] = lambda _: False
    kept: dict[str, str] = field(default_factory=dict)
    loader: LoaderTime = field(default_factory=LoaderTime)
    begin: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Place:
    """The place in the data that a run has reached: epochs of another number of processes have other steps.

    Attributes:
        step: steps done.
        epoch: the epoch in progress, from 0.
        samples: samples of it that were trained on.
    """

    step: int
    epoch: int
    samples: int


@dataclass(frozen=True)
class Plan:
    """The batches of every process from a place in the data on.

    Attributes:
        sizes: samples of each batch of one process, over a whole epoch.
        processes: number of processes, whose batches are beside each other in the order of the samples.
        samples: samples in the data.
        start: where the plan begins.
        epochs: passes over the data in all.
        variants: the shapes of batches that there are.
    """

    sizes: tuple[int, ...]
    processes: int
    samples: int
    start: Place
    epochs: int
    variants: tuple[Variant, ...]

    @property
    def total(self) -> int:
        """Steps in all, those that are done included."""
        if self.start.epoch >= self.epochs:
            return self.start.step
        left = (self.epochs - self.start.epoch - 1) * len(self.sizes)
        return self.start.step + len(self.starts(self.start)) - 1 + left

    def starts(self, place: Place) -> list[int]:
        """The first sample of each step that is left of an epoch, and the end of the last one."""
        sizes = batch_sizes(self.variants, (self.samples - place.samples) // self.processes)
        return [place.samples + self.processes * start for start in (0, *itertools.accumulate(sizes))]

    def place(self, step: int) -> Place:
        """The place after ``step`` steps."""
        done, place = step - self.start.step, self.start
        while (left := len(self.starts(place)) - 1) <= done and (left or place.samples):
            done, place = done - left, Place(place.step + left, place.epoch + 1, 0)
        return Place(step, place.epoch, self.starts(place)[done])


def plan_of(session: Session, samples: int, epochs: int, kept: Mapping[str, str]) -> Plan:
    """The plan of a run over ``samples`` samples that goes on where the session is.

    Args:
        session: the session, joined to its group.
        samples: number of samples in the data.
        epochs: passes over the data in all.
        kept: metadata of the checkpoint that the session goes on from; it has the place if several processes wrote it.
    """
    group, variants = session.group, session.manifest.variants
    processes = 1 if group is None else group.size
    sizes = tuple(batch_sizes(variants, samples // processes))
    epoch, position = divmod(session.step_count, len(sizes)) if sizes else (0, 0)
    start = Place(session.step_count, epoch, processes * sum(sizes[:position]))
    if PLACE in kept:
        try:
            start = Place(**{name: int(number) for name, number in json.loads(kept[PLACE]).items()})
        except (ValueError, TypeError, AttributeError) as error:
            raise FqtError(f"the checkpoint is damaged: {error} in its metadata", code="FQT502") from None
    return Plan(sizes, processes, samples, start, epochs, tuple(variants))


def train(
    session: Session, data: Prepared, *, epochs: int, schedule: Schedule, checkpoint: Path, progress: Progress
) -> None:
    """Run the steps that are left; a checkpoint follows every epoch, and the last step where training is stopped.

    The order of the samples, and how they are augmented, depends on seed and epoch alone, so a resumed run sees the
    batches it would have seen.

    Args:
        session: the session to train, as far as its step count says.
        data: the data, at least one batch.
        epochs: passes over the data in all, those done before included.
        schedule: of the learning rates.
        checkpoint: the file.
        progress: is told how it goes, and asked whether to end.

    Raises:
        FqtError: FQT511 if a loss is not finite; the file is as it was. FQT506 and FQT508 of ``save_checkpoint``, and
            what reading the data raises.
    """
    group = session.group
    plan = plan_of(session, len(data), epochs, progress.kept)
    total = plan.total
    keeps_place = PLACE in progress.kept or group is not None
    initial = session.lr if isinstance(session.lr, tuple) else (session.lr,)

    def note_place() -> None:
        if keeps_place:
            progress.kept[PLACE] = json.dumps(dataclasses.asdict(plan.place(session.step_count)))

    def save() -> None:
        rates = session.lr
        session.lr = list(initial)  # a schedule starts again from the initial rate
        note_place()
        if group is None or group.rank == 0:
            session.save_checkpoint(checkpoint, progress.kept)
        session.lr = rates

    def ends(epoch: int) -> bool:
        note_place()
        told = progress.ended(epoch)
        save()
        return told

    def set_rates(done: int) -> None:
        if not schedule.is_constant:
            session.lr = [rate * schedule.factor(done, total) for rate in initial]

    start = plan.place(session.step_count)
    if start.epoch and not start.samples and progress.owed(start.epoch - 1):
        set_rates(start.step - 1)
        if ends(start.epoch - 1):
            return
    while (done := session.step_count) < total:
        place = plan.place(done)
        epoch = place.epoch
        order = np.random.default_rng([session.seed & _UNSIGNED, epoch]).permutation(len(data))
        rows = [_own(order[start:end], group) for start, end in itertools.pairwise(plan.starts(place))]
        with load_ahead(partial(data.batch, epoch=epoch), rows, progress.loader) as batches:
            for arrays in batches:
                set_rates(session.step_count)
                progress.begin()
                if group is not None:
                    group.stopping = progress.stopped()
                loss = session.step(arrays, check=True)
                progress.show(session.step_count, epoch, loss)
                if group.stopped if group is not None else progress.stopped():
                    session.synchronize()
                    save()
                    return
        session.synchronize()
        if ends(epoch):
            return


def _own(rows: NDArray[Any], group: Group | None) -> NDArray[Any]:
    """The part of a step's samples that this process trains on."""
    return rows if group is None else np.split(rows, group.size)[group.rank]
