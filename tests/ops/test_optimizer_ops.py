"""The update ops against the optimizers of PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fqt_deploy.ops.optimizers.adam_update import AdamUpdate
from fqt_deploy.ops.optimizers.sgd_momentum_update import SgdMomentumUpdate
from fqt_deploy.ops.optimizers.sgd_update import SgdUpdate

STEPS = 5
RATES = torch.tensor([0.5, 1e-2])
GROUP = 1


def _follow(make: Callable[[list[Tensor]], torch.optim.Optimizer], update: Callable[..., Any], states: int) -> None:
    """Compare ``update(step, param, *state, grad) -> (param, *state)`` with an optimizer over a few steps."""
    g = torch.Generator().manual_seed(0)
    start = torch.randn(7, 5, generator=g)
    theirs = torch.nn.Parameter(start.clone())
    optimizer = make([theirs])
    values = [start, *(torch.zeros_like(start) for _ in range(states))]
    for step in range(1, STEPS + 1):
        grad = torch.randn(7, 5, generator=g)
        theirs.grad = grad.clone()
        optimizer.step()
        before = [value.clone() for value in values]
        after = list(update(torch.tensor(step), *values, grad))
        for old, kept in zip(values, before, strict=True):
            assert torch.equal(old, kept), "operands must not change"
        values = after
        torch.testing.assert_close(values[0], theirs.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("decoupled", [False, True])
def test_adam(decoupled: bool, weight_decay: float) -> None:
    """Adam, and AdamW where decay is decoupled."""
    optimizer = torch.optim.AdamW if decoupled else torch.optim.Adam
    betas, eps = (0.8, 0.99), 1e-8

    def update(step: Tensor, param: Tensor, m: Tensor, v: Tensor, grad: Tensor) -> Any:
        options = (GROUP, *betas, eps, weight_decay, decoupled)
        return AdamUpdate(param, m, v, grad, RATES, step, *options).reference()

    rate = float(RATES[GROUP])
    _follow(lambda p: optimizer(p, lr=rate, betas=betas, eps=eps, weight_decay=weight_decay), update, 2)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_with_momentum(nesterov: bool, weight_decay: float) -> None:
    """Momentum, with and without look-ahead."""

    def update(step: Tensor, param: Tensor, buf: Tensor, grad: Tensor) -> Any:
        return SgdMomentumUpdate(param, buf, grad, RATES, step, GROUP, 0.9, nesterov, weight_decay).reference()

    rate = float(RATES[GROUP])
    _follow(
        lambda p: torch.optim.SGD(p, lr=rate, momentum=0.9, nesterov=nesterov, weight_decay=weight_decay), update, 1
    )


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_plain_sgd(weight_decay: float) -> None:
    """No momentum."""

    def update(step: Tensor, param: Tensor, grad: Tensor) -> Any:
        return (SgdUpdate(param, grad, RATES, GROUP, weight_decay).reference(),)

    _follow(lambda p: torch.optim.SGD(p, lr=float(RATES[GROUP]), weight_decay=weight_decay), update, 0)
