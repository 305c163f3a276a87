"""Images read between their pixels are those of PyTorch, with the same gradients."""

import pytest
import torch
from torch.nn import functional as F

from fqt_deploy.capture.load_model import load_model
from fqt_deploy.capture.replaced_functions import ReplacedFunctions
from tests.capture.following import assert_follows_pytorch

IMAGE = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
PLACES = torch.rand(2, 4, 6, 2, generator=torch.Generator().manual_seed(1)) * 3 - 1.5  # some outside
IDENTITY = F.affine_grid(torch.tensor([[[1.0, 0, 0], [0, 1, 0]]]).expand(2, 2, 3), [2, 3, 5, 7], align_corners=True)


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("places", [PLACES, IDENTITY], ids=["anywhere", "on pixels"])
def test_values_and_gradients(mode, padding, aligned, places):
    def run():
        x, grid = IMAGE.clone().requires_grad_(), places.clone().requires_grad_()
        y = F.grid_sample(x, grid, mode, padding, aligned)
        loss = (y * torch.linspace(0.5, 1.5, y.numel()).view(y.shape)).sum()
        return y, *torch.autograd.grad(loss, (x, grid), allow_unused=True, materialize_grads=True)

    expected = run()
    with ReplacedFunctions():
        actual = run()
    kinks = places is IDENTITY and (mode, aligned) == ("bilinear", True)  # on a pixel either side's slope is one
    for a, b in zip(actual[:2] if kinks else actual, expected, strict=not kinks):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


MODEL = """
import torch
from torch import nn
from torch.nn import functional as F


class Turned(nn.Module):
    def __init__(self):
        super().__init__()
        self.where = nn.Linear(64, 6)
        self.where.weight.data.mul_(0.1)
        self.features = nn.Conv2d(1, 32, 3)
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        theta = self.where(x.flatten(1)).view(-1, 2, 3) + torch.eye(2, 3)
        x = F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False)
        return self.head(F.relu(self.features(x)).mean((2, 3)))


def build_model():
    return Turned()


def example_inputs():
    return torch.randn(6, 1, 8, 8), torch.randint(0, 5, (6,))
"""


def test_a_compiled_step_follows_pytorch(model_file, tmp_path):
    source = load_model(model_file(MODEL))
    assert_follows_pytorch(source, tmp_path / "turned.fqt")
