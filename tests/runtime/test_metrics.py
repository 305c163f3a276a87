"""Metrics count the classes that labels mean, whatever number the first of them has."""

from dataclasses import dataclass

import numpy as np
import pytest

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import IndexRange, InputSpec, Manifest, TensorSpec
from fqt_deploy.runtime.metrics import check_measurable, evaluate

CLASSES = np.array([2, 0, 1, 2, 1, 0])
LOGITS = np.eye(3, dtype=np.float32)[[2, 0, 1, 2, 0, 1]] * 8  # four of six are right


def manifest(low, high, ignore_index=None, classes=3):
    inputs = (
        InputSpec("x", (2, 3), "float32", "input"),
        InputSpec("y", (2,), "int64", "target", IndexRange(low, high, ignore_index)),
    )
    rest = {"state": (), "predict_state": (), "module_names": {}, "layers": (), "kernels": (), "options": {}}
    return Manifest(
        "m", {}, {}, inputs, TensorSpec("logits", (2, 3), "float32"), classes, optimizer=None, seed=0, fingerprint="",
        **rest,
    )  # fmt: skip


@dataclass
class Fake:
    """A session that predicts ``LOGITS``, and its data."""

    manifest: Manifest
    labels: np.ndarray

    def __len__(self):
        return len(self.labels)

    def batch(self, indices):
        return {"x": indices, "y": self.labels[indices]}

    def predict(self, arrays):
        return LOGITS[arrays["x"]]


@pytest.mark.parametrize("shift", [-1, 0, 1, 7])
def test_accuracy_is_of_classes_not_of_numbers(shift):
    fake = Fake(manifest(shift, shift + 3, 50), CLASSES + shift)
    found = evaluate(fake, fake)
    assert found.values["accuracy"] == pytest.approx(4 / 6)
    assert found.values["loss"] == pytest.approx(8 / 3, abs=0.01)
    fake.labels[4:] = 50
    assert evaluate(fake, fake).values["accuracy"] == 1
    assert evaluate(fake, fake).count == 4


def test_labels_that_are_a_part_of_the_classes_are_measured():
    fake = Fake(manifest(0, 2), CLASSES % 2)
    assert evaluate(fake, fake).count == 6


@pytest.mark.parametrize(("low", "high"), [(0, 2**62), (-(2**62), 3), (1, 3)])
def test_labels_that_are_no_classes_are_not_measured(low, high):
    with pytest.raises(FqtError, match="FQT510"):
        check_measurable(manifest(low, high))
