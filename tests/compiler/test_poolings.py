"""Poolings of every kind train as in PyTorch."""

import pytest
import torch
from torch import nn

from tests.compiler.test_convolutions import Branches, assert_trains_as_in_pytorch

pytestmark = pytest.mark.thorough


def branch(kind, pool, out=4):
    return nn.Sequential(kind(2, out, 3, padding=1), pool)


def mixed():
    """One of each kind; the others of a kind differ in their windows."""
    pools = [nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), nn.AvgPool2d(3, 2, padding=1, ceil_mode=True)]
    pools += [nn.AdaptiveMaxPool2d((5, 3)), nn.AdaptiveAvgPool2d((5, 3))]
    return Branches(*[branch(nn.Conv2d, pool) for pool in pools], features=16), torch.randn(4, 2, 9, 8)


def maxima():
    pools = [
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.MaxPool2d(3, 2, padding=1, dilation=2),
        nn.MaxPool2d((12, 11), 1, padding=(0, 1)),
        nn.AdaptiveMaxPool2d((5, 3)),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d(3, 1, padding=1),
        nn.MaxPool2d(5, 2, padding=2),
    ]
    return Branches(*[branch(nn.Conv2d, pool) for pool in pools], features=28), torch.randn(4, 2, 14, 11)


def averages():
    pools = [
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.AvgPool2d(3, 2, padding=1, ceil_mode=True, count_include_pad=False),
        nn.AvgPool2d(2, 3, padding=1, divisor_override=3),
        nn.AdaptiveAvgPool2d((5, 3)),
        nn.AvgPool2d((2, 3), padding=(0, 1), count_include_pad=False),
    ]
    return Branches(*[branch(nn.Conv2d, pool) for pool in pools], features=20), torch.randn(4, 2, 14, 11)


def one_axis():
    pools = [
        nn.MaxPool1d(3, 2, ceil_mode=True),
        nn.AvgPool1d(3, 2, 1, count_include_pad=False),
        nn.AdaptiveAvgPool1d(4),
    ]
    pools += [nn.AdaptiveMaxPool1d(5), nn.MaxPool1d(2), nn.AvgPool1d(2)]
    return Branches(*[branch(nn.Conv1d, pool) for pool in pools], features=24), torch.randn(4, 2, 14)


def three_axes():
    pools = [nn.MaxPool3d(2, ceil_mode=True), nn.AvgPool3d(3, 2, 1), nn.AdaptiveAvgPool3d((2, 1, 3))]
    pools += [nn.AdaptiveMaxPool3d(2), nn.AdaptiveAvgPool3d(1)]
    return Branches(*[branch(nn.Conv3d, pool) for pool in pools], features=20), torch.randn(4, 2, 5, 4, 7)


@pytest.mark.quick(only=("mixed",))
@pytest.mark.parametrize("make", [mixed, maxima, averages, one_axis, three_axes])
def test_poolings_train_as_in_pytorch(make):
    torch.manual_seed(0)
    model, x = make()
    assert_trains_as_in_pytorch(model, x, lr=0.05)
