"""Epochs over data in memory, with a checkpoint after each, and the accuracy of what was trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.runtime.data_file import Data
from fqt_deploy.runtime.session import Session

_UNSIGNED = 2**64 - 1


def train(
    session: Session,
    data: Data,
    *,
    epochs: int,
    cosine: bool,
    checkpoint: Path,
    show: Callable[[int, int, float], None],
    stopped: Callable[[], bool],
) -> None:
    """Run the steps that are left; a checkpoint follows every epoch, and the last step where training is stopped.

    The order of the samples depends on seed and epoch alone, so a resumed run sees the batches it would have seen.

    Args:
        session: the session to train, as far as its step count says.
        data: the data, at least one batch.
        epochs: passes over the data in all, those done before included.
        cosine: lower the learning rates along a half cosine over all steps.
        checkpoint: the file.
        show: called after each step with steps done, epoch from 0, and loss.
        stopped: asked after each step whether to end there.

    Raises:
        FqtError: FQT511 if a loss is not finite; the file is as it was. FQT506 and FQT508 of ``save_checkpoint``.
    """
    batch = session.manifest.batch
    steps = len(data) // batch
    total = epochs * steps
    initial = session.lr if isinstance(session.lr, tuple) else (session.lr,)
    while (done := session.step_count) < total:
        epoch, position = divmod(done, steps)
        order = np.random.default_rng([session.seed & _UNSIGNED, epoch]).permutation(len(data))
        if cosine:
            session.lr = [rate * 0.5 * (1 + math.cos(math.pi * done / total)) for rate in initial]
        rows = order[position * batch : (position + 1) * batch]
        loss = session.step(data.rows(rows), check=True)
        show(done + 1, epoch, loss)
        ends = stopped()
        if ends or position == steps - 1:
            rates = session.lr
            session.lr = list(initial)  # a schedule starts again from the initial rate
            session.save_checkpoint(checkpoint)
            session.lr = rates
        if ends:
            return


def accuracy(session: Session, data: Data) -> tuple[float, int]:
    """The share of labels that the session predicts, and of how many; those that the loss leaves out do not count.

    Raises:
        FqtError: FQT510 if none counts.
    """
    manifest = session.manifest
    axis = -1 if manifest.class_axis is None else manifest.class_axis
    spec = manifest.labels
    assert spec is not None, "accuracy needs labels"
    assert spec.values is not None
    labels: NDArray[Any] = data.arrays[spec.name]
    predicted = session.predict(dict(data.arrays)).argmax(axis).reshape(labels.shape)
    ignored = spec.values.ignore_index
    counts = np.ones(labels.shape, bool) if ignored is None else labels != ignored
    if not counts.any():
        raise FqtError("no label counts: the loss leaves them all out", code="FQT510", hint="leave --eval-data out")
    return float((predicted == labels)[counts].mean()), int(counts.sum())
