"""Epochs over a source of data, with a checkpoint after each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from fqt_deploy.runtime.choose_variant import batch_sizes
from fqt_deploy.runtime.load_ahead import LoaderTime, load_ahead
from fqt_deploy.runtime.preparation import Prepared
from fqt_deploy.runtime.session import Session

_UNSIGNED = 2**64 - 1


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
        show: called after each step with steps done, epoch from 0, and loss.
        stopped: asked after each step whether to end there.
        ended: called after each whole epoch with its number from 0; returns whether to end there.
        owed: asked before the first step whether ``ended`` was not called for the epoch before it, in whose last step
            an earlier run was stopped.
        kept: returns text that the checkpoint keeps, as the session's metadata.
        loader: how long loading took.
    """

    show: Callable[[int, int, float], None] = lambda *_: None
    stopped: Callable[[], bool] = lambda: False
    ended: Callable[[int], bool] = lambda _: False
    owed: Callable[[int], bool] = lambda _: False
    kept: Callable[[], dict[str, str]] = dict
    loader: LoaderTime = field(default_factory=LoaderTime)


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
    sizes = batch_sizes(session.manifest.variants, len(data))
    starts = [0, *itertools.accumulate(sizes)]
    steps = len(sizes)
    total = epochs * steps
    initial = session.lr if isinstance(session.lr, tuple) else (session.lr,)

    def save() -> None:
        rates = session.lr
        session.lr = list(initial)  # a schedule starts again from the initial rate
        session.save_checkpoint(checkpoint, progress.kept())
        session.lr = rates

    def ends(epoch: int) -> bool:
        told = progress.ended(epoch)
        save()
        return told

    def set_rates(done: int) -> None:
        if not schedule.is_constant:
            session.lr = [rate * schedule.factor(done, total) for rate in initial]

    epochs_done, position = divmod(session.step_count, steps)
    if epochs_done and not position and progress.owed(epochs_done - 1):
        set_rates(session.step_count - 1)
        if ends(epochs_done - 1):
            return
    while (done := session.step_count) < total:
        epoch, position = divmod(done, steps)
        order = np.random.default_rng([session.seed & _UNSIGNED, epoch]).permutation(len(data))
        rows = [order[start:end] for start, end in itertools.pairwise(starts[position:])]
        with load_ahead(partial(data.batch, epoch=epoch), rows, progress.loader) as batches:
            for arrays in batches:
                set_rates(session.step_count)
                loss = session.step(arrays, check=True)
                progress.show(session.step_count, epoch, loss)
                if progress.stopped():
                    save()
                    return
        if ends(epoch):
            return
