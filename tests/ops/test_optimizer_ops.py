"""The update ops against the optimizers of PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fqt_deploy.ops.optimizers.accumulate_gradient import AccumulateGradient
from fqt_deploy.ops.optimizers.adadelta_update import AdadeltaUpdate
from fqt_deploy.ops.optimizers.adagrad_update import AdagradUpdate
from fqt_deploy.ops.optimizers.adam_update import AdamUpdate
from fqt_deploy.ops.optimizers.average_parameter import AverageParameter
from fqt_deploy.ops.optimizers.lion_update import LionUpdate
from fqt_deploy.ops.optimizers.nadam_product_update import NadamProductUpdate
from fqt_deploy.ops.optimizers.nadam_update import NadamUpdate
from fqt_deploy.ops.optimizers.radam_update import RadamUpdate
from fqt_deploy.ops.optimizers.rmsprop_momentum_update import RmspropMomentumUpdate
from fqt_deploy.ops.optimizers.rmsprop_update import RmspropUpdate
from fqt_deploy.ops.optimizers.scaled_update import ScaledUpdate
from fqt_deploy.ops.optimizers.sgd_momentum_update import SgdMomentumUpdate
from fqt_deploy.ops.optimizers.sgd_update import SgdUpdate
from fqt_deploy.ops.optimizers.update_op import UpdateOp

UPDATES = 8
RATES = torch.tensor([0.5, 1e-2])
GROUP = 1
RATE = float(RATES[GROUP])
EVERY = pytest.mark.parametrize("every", [1, 3])
DECAY = pytest.mark.parametrize("weight_decay", [0.0, 0.1])


def _follow(make: Callable[[list[Tensor]], Any], op: Any, arguments: tuple[Any, ...], states: int, every: int) -> None:
    """Compare ``op(param, *state, grad, lr, step, group, *arguments, every)`` with an optimizer over a few updates."""
    g = torch.Generator().manual_seed(0)
    start = torch.randn(7, 5, generator=g)
    theirs = torch.nn.Parameter(start.clone())
    optimizer = make([theirs])
    values = [start, *(torch.zeros_like(start) for _ in range(states))]
    for step in range(1, UPDATES * every + 1):
        grad = torch.randn(7, 5, generator=g)
        before = [value.clone() for value in values]
        result = op(*values, grad, RATES, torch.tensor(step), GROUP, *arguments, every).reference()
        for old, kept in zip(values, before, strict=True):
            assert torch.equal(old, kept), "operands must not change"
        values = list(result) if isinstance(result, tuple) else [result]
        if step % every:
            assert all(torch.equal(new, old) for new, old in zip(values, before, strict=True))
            continue
        theirs.grad = grad.clone()
        optimizer.step()
        torch.testing.assert_close(values[0], theirs.detach(), rtol=1e-6, atol=1e-6)


@EVERY
@DECAY
@pytest.mark.parametrize("decoupled", [False, True])
def test_adam(decoupled: bool, weight_decay: float, every: int) -> None:
    """Adam, and AdamW where decay is decoupled."""
    optimizer = torch.optim.AdamW if decoupled else torch.optim.Adam
    betas, eps = (0.8, 0.99), 1e-8
    arguments = (*betas, eps, weight_decay, decoupled)
    _follow(
        lambda p: optimizer(p, lr=RATE, betas=betas, eps=eps, weight_decay=weight_decay),
        AdamUpdate,
        arguments,
        2,
        every,
    )


@EVERY
@DECAY
@pytest.mark.parametrize(("dampening", "nesterov"), [(0.0, False), (0.0, True), (0.3, False)])
def test_sgd_with_momentum(dampening: float, nesterov: bool, weight_decay: float, every: int) -> None:
    """Momentum, with and without look-ahead and dampening."""
    options = {"momentum": 0.9, "dampening": dampening, "nesterov": nesterov, "weight_decay": weight_decay}
    _follow(lambda p: torch.optim.SGD(p, lr=RATE, **options), SgdMomentumUpdate, tuple(options.values()), 1, every)


@EVERY
@DECAY
def test_plain_sgd(weight_decay: float, every: int) -> None:
    """No momentum."""
    _follow(lambda p: torch.optim.SGD(p, lr=RATE, weight_decay=weight_decay), SgdUpdate, (weight_decay,), 0, every)


@EVERY
@DECAY
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rmsprop(momentum: float, weight_decay: float, every: int) -> None:
    """RMSprop, with and without momentum."""
    op = RmspropMomentumUpdate if momentum else RmspropUpdate
    arguments = (0.95, 1e-8, *([momentum] if momentum else []), weight_decay)
    _follow(
        lambda p: torch.optim.RMSprop(p, lr=RATE, alpha=0.95, momentum=momentum, weight_decay=weight_decay),
        op, arguments, 2 if momentum else 1, every,
    )  # fmt: skip


@EVERY
@DECAY
def test_adadelta(weight_decay: float, every: int) -> None:
    """Adadelta, whose means of squares begin at zero."""
    options = {"rho": 0.8, "eps": 1e-5, "weight_decay": weight_decay}
    _follow(lambda p: torch.optim.Adadelta(p, lr=RATE, **options), AdadeltaUpdate, tuple(options.values()), 2, every)


@EVERY
@DECAY
@pytest.mark.parametrize(("lr_decay", "initial"), [(0.0, 0.0), (0.5, 0.1)])
def test_adagrad(lr_decay: float, initial: float, weight_decay: float, every: int) -> None:
    """Adagrad, with and without a rate that decays and sums that do not begin at zero."""
    options = {"lr_decay": lr_decay, "initial_accumulator_value": initial, "eps": 1e-6, "weight_decay": weight_decay}
    _follow(lambda p: torch.optim.Adagrad(p, lr=RATE, **options), AdagradUpdate, tuple(options.values()), 1, every)


@EVERY
@DECAY
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.8, 0.6)])
def test_radam(betas: tuple[float, float], decoupled: bool, weight_decay: float, every: int) -> None:
    """RAdam, before and after the variance is known, and where the mean of the squares is always over too few."""
    options = {"eps": 1e-6, "weight_decay": weight_decay, "decoupled_weight_decay": decoupled}
    arguments = (*betas, *options.values())
    _follow(lambda p: torch.optim.RAdam(p, lr=RATE, betas=betas, **options), RadamUpdate, arguments, 2, every)


class _Nadam:
    """Both ops of NAdam as one, whose last state repeats the scalar that they keep."""

    def __init__(self, param: Tensor, m: Tensor, v: Tensor, rest: Tensor, *others: Any) -> None:
        self.values, (self.grad, self.rates, self.step, self.group, *self.others) = (param, m, v, rest), others

    def reference(self) -> tuple[Tensor, ...]:
        """New parameter, moments and scalar."""
        *moments, old = self.values
        beta1, _, _, momentum_decay, *_, every = self.others
        rest = NadamProductUpdate(old[0, 0], self.step, beta1, momentum_decay, every).reference()
        new = NadamUpdate(*moments, self.grad, rest, self.rates, self.step, self.group, *self.others).reference()
        return *new, rest.expand_as(old)


@EVERY
@DECAY
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("momentum_decay", [0.0, 4e-3, 2.0])
def test_nadam(momentum_decay: float, decoupled: bool, weight_decay: float, every: int) -> None:
    """NAdam, and NAdamW where decay is decoupled."""
    options = {"momentum_decay": momentum_decay, "weight_decay": weight_decay, "decoupled_weight_decay": decoupled}
    betas, eps = (0.9, 0.99), 1e-6
    arguments = (*betas, eps, *options.values())
    _follow(lambda p: torch.optim.NAdam(p, lr=RATE, betas=betas, eps=eps, **options), _Nadam, arguments, 3, every)


class _Lion(torch.optim.Optimizer):
    """Lion as the paper has it."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                m, (beta1, beta2) = self.state[p].setdefault("m", torch.zeros_like(p)), group["betas"]
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_((beta1 * m + (1 - beta1) * p.grad).sign(), alpha=-group["lr"])
                m.mul_(beta2).add_(p.grad, alpha=1 - beta2)


@EVERY
@DECAY
def test_lion(weight_decay: float, every: int) -> None:
    """Lion, whose decay is decoupled."""
    _follow(lambda p: _Lion(p, RATE, (0.9, 0.99), weight_decay), LionUpdate, (0.9, 0.99, weight_decay), 1, every)


@EVERY
@DECAY
def test_a_scaled_update(weight_decay: float, every: int) -> None:
    """The end of Adafactor: the update is taken as it is, and decay is decoupled."""
    param, update = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))
    for step in range(1, 4):
        new = ScaledUpdate(
            param, update, torch.tensor(0.3), RATES, torch.tensor(step), GROUP, weight_decay, every
        ).reference()
        moved = param * (1 - RATE * weight_decay) - 0.3 * update
        torch.testing.assert_close(new, moved if step % every == 0 else param)


def test_accumulated_gradients_are_the_mean_of_each_few_steps() -> None:
    """The sum starts anew after each update, whatever it held."""
    gradients = torch.randn(6, 7, 5, generator=torch.Generator().manual_seed(0))
    total = torch.full((7, 5), float("nan"))
    for step, gradient in enumerate(gradients, start=1):
        total = AccumulateGradient(total, gradient, torch.tensor(step), 3).reference()
        if step % 3 == 0:
            torch.testing.assert_close(total, gradients[step - 3 : step].mean(0))


@EVERY
def test_the_average_is_that_of_pytorchs_averaged_model(every: int) -> None:
    """The first update copies, later ones average."""
    g = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(5, 7, bias=False)
    theirs = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    ours = torch.full((7, 5), float("nan"))
    for step in range(1, UPDATES * every + 1):
        model.weight.data = torch.randn(7, 5, generator=g)
        ours = AverageParameter(ours, model.weight.detach(), torch.tensor(step), 0.9, every).reference()
        if step % every == 0:
            theirs.update_parameters(model)
            torch.testing.assert_close(ours, theirs.module.weight.detach(), rtol=1e-6, atol=1e-6)


def test_an_update_has_to_say_whether_it_scales_the_gradient():
    with pytest.raises(TypeError, match="scales_gradient"):
        type("Silent", (UpdateOp,), {})
