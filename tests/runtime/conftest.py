"""One small compiled step for all tests of the runtime."""

import pytest
import torch
from torch import nn

import fqt_deploy
from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.compiler.compile_model import compile_model
from fqt_deploy.core.options import CompileOptions

BATCH = 4


class Tied(nn.Module):
    """A weight under two names, and a buffer that is in no state dict."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.second.weight = self.first.weight
        self.register_buffer("mask", torch.ones(64), persistent=False)

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x.flatten(1) * self.mask)))))


@pytest.fixture(scope="session")
def model():
    torch.manual_seed(0)
    return Tied()


@pytest.fixture(scope="session")
def artifact(model, tmp_path_factory):
    x, y = torch.randn(BATCH, 1, 8, 8), torch.arange(BATCH)
    folder = tmp_path_factory.mktemp("runtime") / "step"
    compile_model(ModelSource(model, nn.functional.cross_entropy, (x, y)), CompileOptions(include=("first",)), folder)
    return folder


@pytest.fixture
def session(artifact):
    return fqt_deploy.load(artifact)
