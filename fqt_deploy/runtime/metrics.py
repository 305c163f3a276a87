"""How good predictions are: accuracy and loss for labels, intersection over union for pixels, errors for numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import InputSpec, Manifest
from fqt_deploy.runtime.load_ahead import load_ahead
from fqt_deploy.runtime.preparation import Prepared
from fqt_deploy.runtime.session import Session
from fqt_deploy.runtime.sources.source import Array

_BATCHES = 4
"""Number of the step's batches that are predicted at a time."""


@dataclass(frozen=True)
class Evaluation:
    """The findings of an evaluation.

    Attributes:
        values: by name; the first is the one that the best checkpoint goes by.
        count: number of labels or numbers that count.
        smaller_is_better: whether that holds of the first value.
    """

    values: dict[str, float]
    count: int
    smaller_is_better: bool = False

    @property
    def first(self) -> float:
        """The value that the best checkpoint goes by."""
        return next(iter(self.values.values()))

    def better_than(self, other: float | None) -> bool:
        """Whether the first value is better than ``other``, another evaluation's."""
        return other is None or (self.first < other if self.smaller_is_better else self.first > other)


def check_measurable(manifest: Manifest) -> None:
    """FQT510 unless the targets are labels, or numbers of the shape of what is predicted."""
    if _labels_of(manifest) is None and not (manifest.targets and manifest.targets[0].shape == manifest.logits.shape):
        raise FqtError(
            "metrics need targets that are class labels, or numbers of the predictions' shape "
            f"{list(manifest.logits.shape)}",
            code="FQT510",
            hint="leave --eval-data out",
        )


def evaluate(session: Session, data: Prepared) -> Evaluation:
    """The metrics of the session's predictions.

    Labels give ``accuracy`` and ``loss`` (cross-entropy), for each pixel also ``mean_iou``, for each token
    ``perplexity``; numbers give ``rmse`` and ``mae``. Labels that the loss leaves out do not count.

    Raises:
        FqtError: FQT510 if nothing counts.
    """
    manifest = session.manifest
    spec = _labels_of(manifest)
    if spec is None:
        return _of_numbers(session, data)
    axis = -1 if manifest.class_axis is None else manifest.class_axis
    sums = _Labels(spec, axis, manifest.logits.shape[axis])
    for arrays in _batches(data, manifest.batch):
        sums.add(session.predict(arrays), arrays[spec.name])
    if not sums.count:
        raise FqtError("no label counts: the loss leaves them all out", code="FQT510", hint="leave --eval-data out")
    return sums.evaluation()


def predictions(session: Session, data: Prepared) -> Array:
    """What the session predicts for every sample, in their order."""
    return np.concatenate([session.predict(arrays) for arrays in _batches(data, session.manifest.batch)])


@dataclass
class _Labels:
    """Sums over labels: how often each class was predicted for each, and the negative logarithms of their shares."""

    spec: InputSpec
    axis: int
    classes: int
    surprise: float = 0.0
    table: Array = field(default_factory=lambda: np.zeros((0, 0), np.int64))

    @property
    def count(self) -> int:
        return int(self.table.sum())

    def add(self, logits: Array, labels: Array) -> None:
        rows = np.moveaxis(logits, self.axis, -1).reshape(-1, self.classes).astype(np.float64)
        flat = labels.reshape(-1).astype(np.int64)
        values = self.spec.values
        assert values is not None
        counts = np.ones(flat.shape, bool) if values.ignore_index is None else flat != values.ignore_index
        rows, flat = rows[counts], flat[counts] - values.low
        largest = rows.max(1, keepdims=True) if len(rows) else rows
        shares = rows - largest - np.log(np.exp(rows - largest).sum(1, keepdims=True))
        self.surprise -= float(np.take_along_axis(shares, flat[:, np.newaxis], 1).sum())
        found = np.bincount(flat * self.classes + rows.argmax(1), minlength=self.classes**2)
        self.table = found if not self.table.size else self.table + found

    def evaluation(self) -> Evaluation:
        axes = len(self.spec.shape)
        table = self.table.reshape(self.classes, self.classes)
        right, loss = np.diag(table), self.surprise / self.count
        values = {"accuracy": float(right.sum() / self.count), "loss": loss}
        if axes == 2:
            values["perplexity"] = float(np.exp(min(loss, 700.0)))
        if axes >= 3:
            union = table.sum(0) + table.sum(1) - right
            values = {"mean_iou": float((right[union > 0] / union[union > 0]).mean()), **values}
        return Evaluation(values, self.count)


def _labels_of(manifest: Manifest) -> InputSpec | None:
    """The labels that the loss indexes the logits by, the first class as their lowest; None if there are none such."""
    labels = manifest.labels
    if labels is None or labels.values is None or manifest.classes is None:
        return None
    count = labels.values.high - labels.values.low
    numbered = count == manifest.classes or (labels.values.low == 0 and count < manifest.classes)
    return labels if numbered else None


def _of_numbers(session: Session, data: Prepared) -> Evaluation:
    squares = magnitudes = 0.0
    count, target = 0, session.manifest.targets[0].name
    for arrays in _batches(data, session.manifest.batch):
        errors = session.predict(arrays).astype(np.float64) - arrays[target]
        squares += float((errors**2).sum())
        magnitudes += float(abs(errors).sum())
        count += errors.size
    return Evaluation({"rmse": (squares / count) ** 0.5, "mae": magnitudes / count}, count, smaller_is_better=True)


def _batches(data: Prepared, batch: int) -> Iterator[dict[str, Array]]:
    size = _BATCHES * batch
    indices = [np.arange(start, min(start + size, len(data))) for start in range(0, len(data), size)]
    with load_ahead(data.batch, indices) as loaded:
        yield from loaded
