"""Adafactor in a compiled step against ``torch.optim.Adafactor``: parameters and state after 20 steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fqt_deploy
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.parameter_group import ParameterGroup
from fqt_deploy.torch_optimizer import translate

STEPS = 20


class Network(nn.Module):
    """A convolution whose weight is kept as a matrix or as PyTorch has it, a norm, a linear layer and a scalar."""

    def __init__(self, *, matrix: bool) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        weight = torch.randn(4, 18, generator=g) / 4
        self.kernel = nn.Parameter(weight if matrix else weight.view(4, 2, 3, 3))
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(64, 3)
        self.head.weight.data = torch.randn(3, 64, generator=g) / 8
        self.head.bias.data.zero_()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(F.conv2d(x, self.kernel.view(4, 2, 3, 3), padding=1)).relu()
        return self.head(y.flatten(1)) * self.scale


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 2, 4, 4, generator=g), torch.randint(0, 3, (8,), generator=g)) for _ in range(STEPS)]


def assert_follows(optimizer: Any, model: nn.Module, twin: nn.Module, theirs: Any, accumulate: int = 1) -> None:
    step = fqt_deploy.compile(
        model, example_inputs=batches()[0], optimizer=optimizer, recipe="none", exclude="*", accumulate=accumulate
    )
    for number, (x, y) in enumerate(batches(), start=1):
        step(x, y)
        (F.cross_entropy(twin(x), y) / accumulate).backward()
        if number % accumulate == 0:
            theirs.step()
            theirs.zero_grad()
    for name, value in twin.state_dict().items():
        if name != "norm.num_batches_tracked":
            ours = step.state_dict()[name]
            torch.testing.assert_close(
                ours.reshape(value.shape), value, rtol=1e-6, atol=1e-6, msg=lambda m, n=name: n + m
            )
    moments = {"row_var": "adafactor_row", "col_var": "adafactor_column", "variance": "adafactor_v"}
    state = step.tensors()
    for name, parameter in twin.named_parameters():
        for key, kind in moments.items():
            if key in theirs.state[parameter]:
                value = theirs.state[parameter][key].numpy()
                np.testing.assert_allclose(np.asarray(state[f"{kind}/{name}"]).reshape(value.shape), value, rtol=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("accumulate", [1, 4])
def test_convolutions_are_matrices(accumulate: int) -> None:
    """A convolution's weight keeps one row and one column; it moves as PyTorch moves the same weight as a matrix."""
    twin = Network(matrix=True)
    theirs = torch.optim.Adafactor(
        [
            {"params": [twin.head.bias], "lr": 3e-3, "weight_decay": 0.2},
            {"params": [p for p in twin.parameters() if p is not twin.head.bias]},
        ],
        lr=2e-2, weight_decay=0.1, beta2_decay=-0.7, eps=(1e-5, 1e-2), d=1.1,
    )  # fmt: skip
    ours = fqt_deploy.Adafactor(
        lr=2e-2, weight_decay=0.1, beta2_decay=-0.7, eps=1e-5, scale_floor=1e-2, update_bound=1.1,
        groups=(ParameterGroup("head.bias", lr=3e-3, weight_decay=0.2),),
    )  # fmt: skip
    assert_follows(ours, Network(matrix=False), twin, theirs, accumulate)


@pytest.mark.thorough
def test_it_is_translated_where_pytorch_factors_the_same_matrices() -> None:
    model, twin = Network(matrix=True), Network(matrix=True)
    optimizer = torch.optim.Adafactor(model.parameters())
    assert_follows(optimizer, model, twin, torch.optim.Adafactor(twin.parameters()), accumulate=2)


def test_it_is_refused_where_pytorch_factors_each_kernel() -> None:
    model = Network(matrix=False)
    with pytest.raises(FqtError, match=r"more than two axes") as caught:
        translate(torch.optim.Adafactor(model.parameters()), model)
    assert caught.value.code == "FQT210"
    assert "fqt_deploy.Adafactor" in str(caught.value.hint)


def test_its_state_is_small() -> None:
    step = fqt_deploy.compile(
        Network(matrix=False), example_inputs=batches()[0], optimizer="adafactor", recipe="none", exclude="*"
    )
    kept = {name: value for name, value in step.tensors().items() if name.startswith("adafactor")}
    assert sum(np.asarray(value).size for value in kept.values()) == (4 + 18) + (3 + 64) + 4 + 4 + 3 + 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"beta2_decay": 0.1}, "beta2_decay is 0.1; it must be at most 0"),
        ({"update_bound": 0.5}, "update_bound is 0.5; it must be a number of at least 1"),
    ],
)
def test_impossible_hyperparameters_are_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(FqtError, match=said):
        fqt_deploy.Adafactor(**options)
