"""A layer whose weight lies [in, out] trains in 1 bit as the same layer with its weight [out, in] does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fqt_deploy
from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.compiler.describe import layer_decisions
from fqt_deploy.core.optimizer import SGD
from fqt_deploy.core.options import CompileOptions


class Conv1D(nn.Module):
    """What transformers calls a ``Conv1D``."""

    __module__ = "transformers.pytorch_utils"

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().T.contiguous())
        self.bias = nn.Parameter(linear.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        rows = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return rows.view(*x.shape[:-1], self.weight.shape[1])


class Network(nn.Module):
    """Two 1-bit layers, of which the second reads the first alone, and a head; ``kind`` makes the layers."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.wide, self.narrow = nn.LayerNorm(40), kind(nn.Linear(40, 72)), kind(nn.Linear(72, 40))
        self.head = nn.Linear(40, 3)

    def forward(self, x: Tensor) -> Any:
        """Map [N, length, 40] to logits [N, 3]."""
        x = x + self.narrow(torch.nn.functional.gelu(self.wide(self.norm(x))))
        return self.head(x.mean(1))


def test_its_gradients_are_those_of_a_linear_layer(weight_gradients: Any) -> None:
    """In the lowered step, at the default recipe, computed by the references of its ops."""
    x, y = torch.randn(8, 6, 40, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 3
    found = []
    for kind in (lambda linear: linear, Conv1D):
        source = ModelSource(Network(kind), nn.CrossEntropyLoss(), (x, y))
        graph = lower_model(source, CompileOptions(optimizer=SGD(lr=1.0))).train
        assert [layer.decision for layer in layer_decisions(graph)] == ["1-bit", "1-bit", "fp32"]
        found.append(weight_gradients(graph, source, seed=3))
    theirs, ours = found
    assert theirs.keys() == ours.keys()
    for name, expected in theirs.items():
        given = ours[name].T if expected.shape != ours[name].shape else ours[name]
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.thorough
def test_it_trains_and_predicts_as_a_linear_layer_does() -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(8, 6, 40, generator=generator), torch.arange(8) % 3
    kinds = (lambda linear: linear, Conv1D)
    one, other = (
        fqt_deploy.compile(Network(kind), nn.CrossEntropyLoss(), example_inputs=(x, y), optimizer="sgd", lr=0.05)
        for kind in kinds
    )
    assert [layer.decision for layer in other.manifest.layers] == ["1-bit", "1-bit", "fp32"]
    for _ in range(3):
        assert abs(float(one(x, y)) - float(other(x, y))) < 1e-5
    theirs, ours = one.state_dict(), other.state_dict()
    for name, expected in theirs.items():
        given = ours[name].T if name in ("wide.weight", "narrow.weight") else ours[name]
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5, msg=name)
    np.testing.assert_allclose(one.predict(x), other.predict(x), rtol=1e-3, atol=1e-4)
    module = other.to_torch()
    with torch.no_grad():
        np.testing.assert_allclose(module(x).numpy(), other.predict(x), rtol=1e-3, atol=1e-4)
