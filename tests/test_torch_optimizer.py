"""Optimizers of PyTorch in a compiled step: the same parameters after 20 steps, schedules, and what is refused."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fqt_deploy
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.optimizer import SGD, AdamW
from fqt_deploy.torch_optimizer import FollowedOptimizer, translate

STEPS = 20
FP32 = {"recipe": "none", "exclude": "*"}


def network() -> nn.Module:
    """A network with a convolution, a norm, biases and a frozen parameter."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 6),
        nn.Tanh(), nn.Linear(6, 3),
    )  # fmt: skip
    model[6].bias.requires_grad_(False)
    return model


def batches(count: int = STEPS) -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 1, 4, 4, generator=g), torch.randint(0, 3, (8,), generator=g)) for _ in range(count)]


def decay_groups(model: nn.Module, **first: Any) -> list[dict[str, Any]]:
    """Matrices decay; biases and norms do not, and have another rate."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": 0.1, **first},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0, "lr": 3e-3},
    ]


def eager(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    accumulate: int = 1,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    ema: float | None = None,
    schedule: Any = None,
) -> tuple[list[float], AveragedModel | None]:
    """The loop that a step with these options stands for: norms of the gradients, and the averaged model."""
    averaged = None if ema is None else AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema))
    norms = []
    for number, (x, y) in enumerate(batches(), start=1):
        (nn.functional.cross_entropy(model(x), y) / accumulate).backward()
        if number % accumulate == 0:
            norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), clip_norm or float("inf"))))
            if clip_value is not None:
                nn.utils.clip_grad_value_(model.parameters(), clip_value)
            optimizer.step()
            optimizer.zero_grad()
            if schedule is not None:
                schedule.step()
            if averaged is not None:
                averaged.update_parameters(model)
    return norms, averaged


def assert_same(step: fqt_deploy.CompiledStep, model: nn.Module) -> None:
    ours, theirs = step.state_dict(), model.state_dict()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-6, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def compiled(model: nn.Module, optimizer: Any = None, **settings: Any) -> fqt_deploy.CompiledStep:
    example = batches(1)[0]
    return fqt_deploy.compile(model, example_inputs=example, optimizer=optimizer, **FP32, **settings)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(decay_groups(model, betas=(0.8, 0.95)), lr=1e-2)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(decay_groups(model, momentum=0.8), lr=0.1, momentum=0.9, nesterov=True)


def damped(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(decay_groups(model), lr=0.1, momentum=0.9, dampening=0.2)


def rmsprop(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(decay_groups(model), lr=1e-3, momentum=0.5, eps=1e-4)


def adadelta(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adadelta(decay_groups(model), lr=0.5, rho=0.8)


def adagrad(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(decay_groups(model, eps=1e-6), lr=1e-2, lr_decay=0.1, initial_accumulator_value=0.01)


def radam(model: nn.Module) -> torch.optim.Optimizer:
    groups = decay_groups(model, betas=(0.8, 0.95))
    return torch.optim.RAdam(groups, lr=1e-2, eps=1e-6, decoupled_weight_decay=True)


def nadam(model: nn.Module) -> torch.optim.Optimizer:
    groups = decay_groups(model, betas=(0.8, 0.95))
    return torch.optim.NAdam(groups, lr=1e-2, eps=1e-6, momentum_decay=0.1)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (adamw, {"clip_norm": 0.3, "accumulate": 2, "ema": 0.9}),
        (sgd, {"clip_value": 0.02}),
        (damped, {"accumulate": 4, "clip_norm": 0.2, "clip_value": 0.05}),
        (rmsprop, {"ema": 0.5}),
        (adadelta, {"accumulate": 2}),
        (adagrad, {"accumulate": 2}),
        (radam, {"accumulate": 2}),
        (nadam, {"accumulate": 2}),
    ],
)
def test_twenty_steps_are_those_of_pytorch(make: Any, options: dict[str, Any]) -> None:
    """Groups, clipping, accumulation and averages, by the user's own optimizer."""
    model = network()
    step = compiled(model, make(model), metrics=["grad_norm", "param_norm"], **options)
    norms, averaged = eager(model, make(model), **options)
    ours = []
    every = options.get("accumulate", 1)
    for number, (x, y) in enumerate(batches(), start=1):
        before = [step.state_dict()[n] for n, p in model.named_parameters() if p.requires_grad]
        step(x, y)
        if number % every == 0:
            ours.append(step.metrics["grad_norm"])
            size = torch.stack([p.norm() for p in before]).norm().item()
            assert step.metrics["param_norm"] == pytest.approx(size, rel=1e-5)
    assert ours == pytest.approx(norms, rel=1e-5)
    assert_same(step, model)
    if averaged is not None:
        step.averaged = True
        assert_same(step, averaged.module)
        averaged.module.eval()
        x = batches(1)[0][0]
        for name, buffer in model.named_buffers():  # an averaged model takes the buffers of its last update
            averaged.module.get_buffer(name).copy_(buffer)
        np.testing.assert_allclose(step.predict(x), averaged.module(x).detach().numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.thorough
def test_a_schedule_works_on_the_optimizer_and_a_resumed_run_is_the_same(tmp_path: Any) -> None:
    """The scheduler of the PyTorch loop is kept as it is; nothing warns."""
    options = {"accumulate": 2, "clip_norm": 0.3, "ema": 0.9, "metrics": "grad_norm"}

    def run() -> tuple[fqt_deploy.CompiledStep, Any]:
        model = network()
        optimizer = adamw(model)
        schedule = lr_scheduler.LambdaLR(optimizer, lambda number: 1 / (1 + number))
        return compiled(model, optimizer, **options), schedule

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step, schedule = run()
        losses = []
        for number, (x, y) in enumerate(batches()):
            if number == 11:  # between two batches of one update
                step.save_checkpoint(tmp_path / "here.safetensors")
                kept = copy.deepcopy(schedule.state_dict())
            losses.append(step(x, y))
            if number % 2:
                schedule.step()
    assert step.lr == pytest.approx((1e-2 / 11, 3e-3 / 11))
    model = network()
    optimizer = adamw(model)
    eager(
        model, optimizer, accumulate=2, clip_norm=0.3, schedule=lr_scheduler.LambdaLR(optimizer, lambda n: 1 / (1 + n))
    )
    assert_same(step, model)

    again, schedule = run()
    again.load_checkpoint(tmp_path / "here.safetensors")
    schedule.load_state_dict(kept)
    resumed = []
    for number, (x, y) in enumerate(batches()[11:], start=11):
        resumed.append(again(x, y))
        if number % 2:
            schedule.step()
    assert resumed == losses[11:]
    for name, value in step.tensors().items():
        assert np.array_equal(np.asarray(value), np.asarray(again.tensors()[name])), name


@pytest.mark.thorough
def test_a_step_of_our_own_optimizer_takes_a_schedule_and_flags_stand_for_groups() -> None:
    """``decay`` and ``no_decay`` are the groups of a PyTorch loop without its optimizer."""
    model = network()
    step = compiled(model, "adamw", lr=1e-2, weight_decay=0.1, decay="matrices", no_decay=["6.*"])
    schedule = lr_scheduler.StepLR(step.optimizer, 5, gamma=0.5)
    plain = [p for n, p in model.named_parameters() if p.requires_grad and (p.dim() < 2 or n.startswith("6."))]
    decayed = [p for n, p in model.named_parameters() if p.dim() > 1 and not n.startswith("6.")]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    for x, y in batches():
        step(x, y)
        schedule.step()
    eager(model, optimizer, schedule=lr_scheduler.StepLR(optimizer, 5, gamma=0.5))
    assert_same(step, model)
    step.lr = 0.25
    assert step.optimizer.param_groups[0]["lr"] == 0.25


def test_what_a_compiled_step_cannot_follow_is_said() -> None:
    model = network()
    optimizer = sgd(model)
    step = compiled(model, optimizer)
    optimizer.param_groups[1]["momentum"] = 0.5
    with pytest.raises(FqtError, match=r"momentum was 0\.9 when the step was compiled, and is 0\.5 now") as caught:
        step(*batches(1)[0])
    assert caught.value.code == "FQT210"
    for copied in (copy.deepcopy, copy.copy, pickle.dumps):
        with pytest.raises(FqtError, match="cannot be copied, pickled or given to torch") as caught:
            copied(step)
        assert caught.value.code == "FQT513"
    with pytest.raises(FqtError, match="keeps no averages") as caught:
        step.averaged = True
    assert caught.value.code == "FQT513"


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (adadelta, "rho", 0.7),
        (adagrad, "lr_decay", 0.2),
        (radam, "decoupled_weight_decay", False),
        (nadam, "momentum_decay", 0.2),
    ],
)
def test_every_hyperparameter_but_the_rate_is_compiled_in(make: Any, name: str, value: Any) -> None:
    optimizer = make(network())
    followed = FollowedOptimizer(optimizer)
    optimizer.param_groups[0]["lr"] = 0.25
    assert followed.rates() == [0.25, 3e-3]
    optimizer.param_groups[1][name] = value
    with pytest.raises(FqtError, match=f"{name} was .* when the step was compiled, and is {value} now") as caught:
        followed.rates()
    assert caught.value.code == "FQT210"


class _Other(torch.optim.AdamW):
    """A subclass, which may do anything."""


def stepped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    optimizer.param_groups[0]["params"][0].grad = torch.ones(4, 1, 3, 3)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda m: torch.optim.Adam(m.parameters(), amsgrad=True), "amsgrad of Adam cannot be compiled"),
        (lambda m: torch.optim.SGD(m.parameters(), maximize=True), "maximize of SGD cannot be compiled"),
        (lambda m: torch.optim.RMSprop(m.parameters(), centered=True), "centered of RMSprop cannot be compiled"),
        (lambda m: torch.optim.Rprop(m.parameters()), "Rprop cannot be compiled"),
        (lambda m: _Other(m.parameters()), "_Other cannot be compiled"),
        (lambda m: stepped(torch.optim.Adam(m.parameters())), "has taken steps"),
        (lambda m: stepped(torch.optim.Adagrad(m.parameters())), "has taken steps"),
        (lambda m: stepped(torch.optim.SGD(m.parameters(), momentum=0.5)), "has taken steps"),
        (lambda m: torch.optim.SGD([m[0].weight]), "leaves out 5 trainable parameter(s): 1.weight, 1.bias"),
        (lambda m: torch.optim.SGD(network().parameters()), "a parameter that the model has not"),
        (
            lambda m: torch.optim.SGD(decay_groups(m, dampening=0.5), momentum=0.9),
            "another dampening for some parameter groups",
        ),
        (
            lambda m: torch.optim.NAdam(decay_groups(m, decoupled_weight_decay=True)),
            "another decoupled_weight_decay for some parameter groups",
        ),
    ],
)
def test_what_has_no_compiled_form_is_refused(make: Any, said: str) -> None:
    model = network()
    with pytest.raises(FqtError) as caught:
        translate(make(model), model)
    assert caught.value.code == "FQT210"
    assert said in caught.value.message


def test_groups_keep_their_order_and_their_hyperparameters() -> None:
    model = network()
    found = translate(adamw(model), model)
    assert isinstance(found, AdamW)
    assert (found.lr, found.betas, found.weight_decay) == (1e-2, (0.8, 0.95), 0.1)
    assert [group.pattern for group in found.groups] == ["1.weight,1.bias,4.bias"]
    assert (found.groups[0].lr, found.groups[0].betas, found.groups[0].weight_decay) == (3e-3, (0.9, 0.999), 0.0)
    tensor = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.5), decoupled_weight_decay=True, weight_decay=0.1)
    assert translate(tensor, model) == AdamW(lr=0.5, weight_decay=0.1)
    assert translate(torch.optim.SGD(model.parameters()), model) == SGD(lr=1e-3)
