"""The loss of a step: a number to whatever takes numbers, and no tensor's method that loops call is missing."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.step_loss import StepLoss


def test_it_is_a_number() -> None:
    loss = StepLoss(0.5)
    assert loss == 0.5
    assert f"{loss:.3f} {loss}" == "0.500 0.5"
    assert json.dumps({"loss": loss}) == '{"loss": 0.5}'
    assert math.isfinite(loss)
    assert np.mean([loss, loss]) == 0.5


def test_it_has_what_loops_call() -> None:
    loss = StepLoss(0.5)
    assert type(loss.item()) is float
    assert loss.detach().cpu().item() == 0.5


@pytest.mark.parametrize(
    ("result", "value"),
    [
        (StepLoss(0.5) / 4, 0.125), (0.0 + StepLoss(0.5), 0.5), (sum([StepLoss(0.5)] * 3), 1.5), (-StepLoss(1), -1.0),
        (2 * StepLoss(0.5), 1.0), (StepLoss(0.5) - 1, -0.5), (1 - StepLoss(0.5), 0.5), (1 / StepLoss(0.5), 2.0),
    ],
)  # fmt: skip
def test_arithmetic_gives_such_a_loss(result: StepLoss, value: float) -> None:
    assert isinstance(result, StepLoss)
    assert result.item() == value


def test_functions_of_pytorch_take_it() -> None:
    loss = StepLoss(0.5)
    assert torch.isfinite(loss)
    assert torch.isfinite(input=loss)
    assert not torch.isnan(loss)
    assert torch.equal(torch.stack([loss, loss]), torch.tensor([0.5, 0.5]))
    assert torch.equal(loss * torch.ones(2), torch.tensor([0.5, 0.5]))
    assert torch.equal(torch.tensor([loss, 1.0]), torch.tensor([0.5, 1.0]))


def test_backward_says_that_the_step_has_done_it() -> None:
    with pytest.raises(FqtError, match="FQT513: the step that returned this loss has gone backward") as caught:
        StepLoss(0.5).backward()
    assert "optimizer.step()" in str(caught.value.hint)
