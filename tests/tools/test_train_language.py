"""Training of the language examples: what is measured of held-out data."""

import math

import numpy as np
import pytest

from tools.train_language import accuracy, next_token_loss


def test_loss_of_the_next_token():
    labels = np.array([[0, 1, 2], [2, 2, 0]])
    assert next_token_loss(np.zeros((2, 3, 4), np.float32), labels) == pytest.approx(math.log(4))
    right = np.full((2, 3, 4), -50.0, np.float32)
    for sample, position in np.ndindex(2, 2):
        right[sample, position, labels[sample, position + 1]] = 50.0
    assert next_token_loss(right, labels) == pytest.approx(0.0, abs=1e-6)


def test_accuracy():
    assert accuracy(np.array([[0.1, 0.2], [3.0, 1.0], [0.0, 1.0]]), np.array([1, 0, 0])) == pytest.approx(2 / 3)
