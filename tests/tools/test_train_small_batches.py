"""The comparison of small batches: what it computes, and that its status follows."""

import json

import numpy as np
import pytest

from tools import train_small_batches
from tools.train_digits import Digits
from tools.train_small_batches import NETWORKS, compare, difference, main


def test_networks_take_the_batch_that_was_asked_for():
    for network in NETWORKS.values():
        source = network(5)
        assert [len(tensor) for tensor in source.example_inputs] == [5, 5]
        assert source.module(source.example_inputs[0]).shape == (5, 10)


@pytest.mark.thorough
def test_a_perceptron_learns_in_batches_of_four():
    """Labels that every pixel tells: both ways learn them, so the layers behind batch normalization train."""
    y = np.arange(240) % 4
    x = np.random.default_rng(0).standard_normal((240, 1, 8, 8), dtype=np.float32)
    x[..., :4] += (y % 2 * 2 - 1)[:, None, None, None]
    x[..., 4:] += (y // 2 * 2 - 1)[:, None, None, None]
    found = compare("perceptron", 4, [0], 5, Digits(x[:200], y[:200], x[200:], y[200:]))
    assert min(min(accuracies) for accuracies in found.values()) > 85
    assert difference(found) == pytest.approx(found["default"][0] - found["sampled"][0])


@pytest.mark.parametrize(("default", "status"), [(91.0, 0), (89.0, 1)])
def test_the_status_says_whether_the_default_is_within_two_points(monkeypatch, capsys, default, status):
    monkeypatch.setattr(train_small_batches, "load_digits", lambda: None)
    monkeypatch.setattr(train_small_batches, "compare", lambda *_: {"default": [default], "sampled": [92.0]})
    monkeypatch.setattr("sys.argv", ["train_small_batches", "--batches", "4", "--networks", "perceptron"])
    assert main() == status
    line, summary = capsys.readouterr().out.splitlines()
    assert line == f"perceptron, batch 4: default {default}, sampled 92.0: {default - 92:+.1f} points"
    assert json.loads(summary) == {"worst": default - 92, "allowed": -2.0}
