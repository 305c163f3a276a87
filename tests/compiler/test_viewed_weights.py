"""A layer whose weight is a parameter seen in another shape trains as one whose weight has that shape."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.compiler.compile_model import compile_model
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.runtime import load


class Body(nn.Module):
    """Two layers in 1 bit, the second with a weight of ``extents``."""

    def __init__(self, extents):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(32, 64)
        self.w = nn.Parameter((torch.randn(64, 64) * 0.1).view(extents))
        self.head = nn.Linear(64, 5)

    def forward(self, x):
        return self.head(F.relu(F.linear(F.relu(self.first(x)), self.w.view(64, 64))))


def _losses(extents, folder):
    x, y = torch.randn(16, 32, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 5
    source = ModelSource(Body(extents), F.cross_entropy, (x, y))
    manifest = compile_model(source, CompileOptions(), folder).manifest
    session = load(folder)
    losses = [session.step(x=x.numpy(), y=y.numpy()) for _ in range(6)]
    return {layer.path: layer.decision for layer in manifest.layers}, losses, session.state_dict()["w"].reshape(64, 64)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return _losses([64, 64], tmp_path_factory.mktemp("plain") / "plain.fqt")


@pytest.mark.parametrize("extents", [[64, 8, 8], [64, 64, 1, 1]], ids=str)
def test_rows_in_another_shape(plain, extents, tmp_path):
    decisions, losses, weight = _losses(extents, tmp_path / "viewed.fqt")
    assert decisions == {"first": "1-bit", "w": "1-bit", "head": "fp32"}
    assert losses == plain[1]
    np.testing.assert_array_equal(weight, plain[2])


def test_other_rows_stay_in_fp32(tmp_path):
    decisions, losses, _ = _losses([8, 8, 64], tmp_path / "viewed.fqt")
    assert decisions == {"first": "1-bit", "w": "fp32", "head": "fp32"}
    assert losses[-1] < losses[0]
