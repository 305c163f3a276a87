"""Tables that integers index, interpolation and norms train as in PyTorch."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fqt_deploy

pytestmark = pytest.mark.thorough


class Indexing(nn.Module):
    """An embedding, a table of relative positions, a resized map, a normalized sum."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(20, 16, padding_idx=0)
        self.relative = nn.Parameter(torch.randn(11, 2))
        self.head = nn.Linear(16, 4)
        place = torch.arange(6)
        self.register_buffer("offset", place[:, None] - place + 5)

    def forward(self, x):
        h = self.tokens(x)
        scores = F.normalize(h, dim=-1) @ h.transpose(1, 2) + self.relative[self.offset].mean(-1)
        h = scores.softmax(-1) @ h
        h = F.interpolate(h[:, None], size=(8, 16), mode="bilinear")[:, 0] + h.cumsum(1).max(1, keepdim=True)[0]
        return self.head(h.mean(1) + h.std(1))


def test_three_steps_equal_pytorch():
    torch.manual_seed(0)
    model = Indexing()
    x, y = torch.randint(0, 20, (4, 6)), torch.randint(0, 4, (4,))
    x[:, 4:] = 0
    eager = copy.deepcopy(model)
    step = fqt_deploy.compile(
        model, example_inputs=(x, y), recipe="none", exclude=("*",), optimizer=fqt_deploy.SGD(lr=0.1), verify="numerics"
    )
    optimizer = torch.optim.SGD(eager.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss = F.cross_entropy(eager(x), y)
        loss.backward()
        optimizer.step()
        assert step(x.numpy(), y.numpy()) == pytest.approx(loss.item(), rel=1e-5)
    state = step.state_dict()
    for name, value in eager.named_parameters():
        torch.testing.assert_close(state[name], value.detach(), rtol=1e-4, atol=1e-5)
