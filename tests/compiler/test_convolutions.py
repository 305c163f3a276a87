"""Convolutions of every kind train as in PyTorch."""

import numpy as np
import pytest
import torch
from torch import nn

import fqt_deploy


class Branches(nn.Module):
    """Several networks side by side on one input; the mean of each feeds the head."""

    def __init__(self, *branches, features):
        super().__init__()
        self.branches, self.head = nn.ModuleList(branches), nn.Linear(features, 4)

    def forward(self, x):
        return self.head(torch.cat([branch(x).flatten(2).square().mean(2) for branch in self.branches], 1))


def grouped():
    return Branches(
        nn.Sequential(nn.Conv2d(6, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=16)),
        nn.Sequential(nn.Conv2d(6, 12, 5, stride=2, padding=2, groups=6), nn.Conv2d(12, 12, 3, stride=2, groups=12)),
        nn.Sequential(nn.Conv2d(6, 8, 3, groups=2, dilation=2, bias=False), nn.Conv2d(8, 4, 2, padding="same")),
        features=32,
    ), torch.randn(4, 6, 9, 8)


def transposed():
    return Branches(
        nn.Sequential(
            nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
            nn.ConvTranspose2d(6, 8, 4, stride=2, padding=1, groups=2),
        ),
        nn.ConvTranspose2d(4, 16, 2, dilation=2, bias=False),
        features=24,
    ), torch.randn(4, 4, 5, 4)


def one_axis():
    return Branches(
        nn.Sequential(nn.Conv1d(4, 16, 5, stride=2, padding=2), nn.ConvTranspose1d(16, 6, 3, stride=2)),
        nn.Conv1d(4, 8, 3, padding="same", groups=4, bias=False),
        features=14,
    ), torch.randn(4, 4, 12)


def three_axes():
    return Branches(
        nn.Sequential(nn.Conv3d(2, 4, (2, 3, 3), padding=(0, 1, 1)), nn.ConvTranspose3d(4, 6, 2, stride=2)),
        features=6,
    ), torch.randn(4, 2, 3, 4, 5)


@pytest.mark.quick
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("make", [grouped, transposed, one_axis, three_axes])
def test_convolutions_train_as_in_pytorch(make):
    torch.manual_seed(0)
    model, x = make()
    assert_trains_as_in_pytorch(model, x)


def assert_trains_as_in_pytorch(model, x, lr=1.0):
    """Losses, predictions and what four steps add to every parameter."""
    y = torch.arange(len(x)) % 4
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    step = fqt_deploy.compile(model, example_inputs=(x, y), optimizer=fqt_deploy.SGD(lr=lr), recipe="none", exclude="*")
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(4):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        assert abs(step.step(x, y) - loss.item()) < 1e-4
        optimizer.step()
    state = step.state_dict()
    for name, parameter in model.named_parameters():
        moved = (parameter.detach() - start[name]).numpy()
        assert np.abs(moved).max() > 1e-4, name
        ours = np.asarray(state[name]) - start[name].numpy()
        np.testing.assert_allclose(ours, moved, atol=2e-3 * np.abs(moved).max(), rtol=0)
    np.testing.assert_allclose(step.predict(x), model(x).detach().numpy(), atol=1e-3)
