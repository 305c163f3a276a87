"""Modules, parameters and buffers may have names that are no identifiers of Python."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fqt_deploy

NAMES = ["block1-0", "lambda", 'a"b', "1x1 convolution", "None", "größe", "0", "a'b", "a\\b", "a/b", "a:b"]


class Named(nn.Module):
    """A module, a parameter and two buffers under each of some names, and two names that differ in a sign alone."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names
        self.body = nn.Sequential()
        self.state, self.factors = nn.Module(), nn.ParameterDict()
        for index, name in enumerate(names):
            if index < 3:  # all would take longer to compile
                self.body.add_module(name, nn.Linear(8, 8))
            self.factors[name] = nn.Parameter(torch.ones(1))
            self.state.register_buffer(name, torch.full((1,), 1.0 + index))
        for name in ("a_b", "a-b"):
            self.register_parameter(name, nn.Parameter(torch.ones(1)))
        self.register_buffer("while", torch.zeros(1))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        """Map [N, 8] to logits [N, 3]; in training a buffer counts the calls."""
        x = self.body(x) * self.a_b * getattr(self, "a-b")
        for name in self.names:
            x = x * self.factors[name] / getattr(self.state, name)
        if self.training:
            setattr(self, "while", getattr(self, "while") + 1)
        return self.head(x)


def test_a_model_with_any_names_trains_as_it_does_in_pytorch() -> None:
    torch.manual_seed(0)
    model, loss_fn = Named(NAMES), nn.CrossEntropyLoss()
    x, y = torch.randn(16, 8), torch.arange(16) % 3
    settings: dict[str, Any] = {"recipe": "none", "exclude": ("*",), "optimizer": "adamw", "lr": 1e-2}
    step = fqt_deploy.compile(model, loss_fn, example_inputs=(x, y), **settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        assert float(step(x, y)) == pytest.approx(loss.item(), rel=1e-5)
    trained = step.state_dict()
    assert trained.keys() == model.state_dict().keys()
    for name, expected in model.state_dict().items():
        torch.testing.assert_close(trained[name], expected, rtol=1e-4, atol=1e-5, msg=name)
