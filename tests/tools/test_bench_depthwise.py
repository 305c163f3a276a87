"""The benchmark of depthwise convolutions: which shapes it finds, that it checks results, and how it sums up."""

import pytest
import torch
from torch import nn

from tools.bench_depthwise import Row, Shape, depthwise_shapes, measure, ratios

SHAPE = Shape(2, 16, (7, 6), (3, 3), (2, 2), (1, 1))


def test_depthwise_convolutions_are_found_with_their_number():
    model = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.Conv2d(16, 16, 3, 2, 1, groups=16), nn.Conv2d(16, 16, 3, groups=4),
    )  # fmt: skip
    found = depthwise_shapes(model, torch.zeros(2, 3, 7, 6))
    assert found == {Shape(2, 16, (7, 6), (3, 3), (1, 1), (1, 1)): 2, SHAPE: 1}


def test_a_row():
    row = measure(SHAPE, 3, turns=1)
    assert (row.shape, row.count) == (SHAPE, 3)
    assert min(row.forward_s, row.torch_forward_s, row.backward_s, row.torch_backward_s) > 0


def test_ratios_weigh_shapes_by_their_number():
    rows = [Row(SHAPE, 1, 1.0, 4.0, 1.0, 1.0), Row(SHAPE, 3, 1.0, 2.0, 2.0, 5.0)]
    assert ratios(rows) == {"forward": 10 / 4, "backward": 16 / 7, "both": pytest.approx(26 / 11)}
