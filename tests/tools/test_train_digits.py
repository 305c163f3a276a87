import numpy as np
import pytest

from tools.train_digits import Outcome, best_pruned, load_digits, outcome_table, run


def test_digits_are_split_and_scaled():
    data = load_digits()
    assert data.train_x.shape == (1347, 1, 8, 8)
    assert data.test_x.shape == (450, 1, 8, 8)
    assert data.train_x.dtype == np.float32
    assert data.train_y.dtype == np.int64
    assert abs(data.train_x.mean()) < 1e-3
    assert data.train_x.std() == pytest.approx(1.0, abs=1e-3)
    assert set(data.test_y) == set(range(10))


def test_best_pruned_leaves_none_out():
    outcomes = {"none": Outcome(0.99, 0.1, 0.1), "a": Outcome(0.9, 0.1, 0.1), "b": Outcome(0.95, 0.1, 0.1)}
    assert best_pruned(outcomes) == "b"
    assert outcome_table(outcomes).row_count == 3


@pytest.mark.slow
def test_demo_reaches_the_required_accuracy(tmp_path):
    assert run(tmp_path, epochs=30) == 0
