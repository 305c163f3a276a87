import numpy as np
import pytest

from tools.training import accuracy, batches, cosine


class AlwaysOne:
    def predict(self, x):
        logits = np.zeros((len(x), 5), np.float32)
        logits[:, 1] = 1
        return logits


def test_cosine_falls_from_the_rate_to_almost_zero():
    rates = [cosine(0.1, step, 10) for step in range(10)]
    assert rates[0] == pytest.approx(0.1)
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.01


def test_batches_use_each_sample_at_most_once_a_pass():
    found = list(batches(10, 3, 6))
    first, second = np.concatenate(found[:3]), np.concatenate(found[3:])
    assert len(set(first)) == len(set(second)) == 9
    assert list(first) != list(second)


def test_batches_repeat_for_a_seed():
    assert all((a == b).all() for a, b in zip(batches(10, 3, 6, seed=1), batches(10, 3, 6, seed=1), strict=True))


def test_batches_larger_than_the_data_are_an_error():
    with pytest.raises(ValueError, match="2 samples do not fill a batch of 3"):
        next(batches(2, 3, 1))


def test_accuracy_is_the_share_of_right_labels():
    labels = np.array([1, 1, 0, 1, 1, 2])
    assert accuracy(AlwaysOne(), np.zeros((6, 3), np.float32), labels) == pytest.approx(4 / 6)
