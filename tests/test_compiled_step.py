"""A compiled step as a PyTorch module: the same predictions from another program."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fqt_deploy
from fqt_deploy.binary_layers import BinaryConv2d, BinaryLinear, Grid, signs_of
from fqt_deploy.compiler.describe import recorded_grids
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.ops.quantization.activation_levels import EDGES
from fqt_deploy.step_loss import StepLoss


class Residual(nn.Module):
    """Both kinds of 1-bit layers, with bias, stride, padding of both spellings, a skip and a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 32, 3, padding=1), nn.BatchNorm2d(32))
        self.body = nn.Sequential(nn.Conv2d(32, 32, 3, padding="same"), nn.BatchNorm2d(32), nn.Hardtanh())
        self.down = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.hidden = nn.Linear(64, 48)
        self.head = nn.Linear(48, 5)
        self.stem[0].bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.down(x + self.body(x)).mean((2, 3))
        return self.head(torch.relu(self.hidden(x)))


FEW_KERNELS = {"recipe": "none", "optimizer": "sgd", "lr": 1e-2}
"""Gradients and updates are no matter to what a step predicts."""


def compiled(model: nn.Module, **settings: Any) -> Any:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 2, 8, 8, generator=g), torch.randint(0, 5, (6,), generator=g)
    layers = ["body.0", "down", "hidden"]
    step = fqt_deploy.compile(model, example_inputs=(x, y), include=layers, **FEW_KERNELS | settings)
    for _ in range(3):
        step(x, y)
    return step


def test_the_module_predicts_what_the_step_predicts_for_batches_of_any_size() -> None:
    torch.manual_seed(0)
    model = Residual()
    step = compiled(model, ema=0.5)
    module = step.to_torch()
    assert not module.training
    assert isinstance(module.down, BinaryConv2d)
    assert isinstance(module.hidden, BinaryLinear)
    assert type(module.head) is nn.Linear
    assert list(module.state_dict()) == list(Residual().state_dict())
    x = torch.randn(17, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(module(x).detach().numpy(), step.predict(x), rtol=1e-5, atol=1e-5)

    step.averaged = True
    averaged = step.to_torch()
    assert not torch.equal(averaged.hidden.weight, module.hidden.weight)
    np.testing.assert_allclose(averaged(x).detach().numpy(), step.predict(x), rtol=1e-5, atol=1e-5)

    plain = copy.deepcopy(model)
    plain.load_state_dict({**plain.state_dict(), **step.state_dict()})
    assert (plain.eval()(x).detach() - step.predict(x)).abs().max() > 0.05, "latent weights are another function"


def test_a_module_can_be_saved_and_trained(tmp_path: Any, capsys: Any) -> None:
    torch.manual_seed(0)
    step = compiled(Residual(), verbose=True)
    told = capsys.readouterr().err
    assert "capturing the training step ..." in told
    assert {line.split()[0]: line.split()[2] for line in told.splitlines() if "linear" in line} == {
        "hidden": "1-bit", "head": "fp32"
    }  # fmt: skip
    module = step.to_torch()
    torch.save(module, tmp_path / "module.pt")
    again = torch.load(tmp_path / "module.pt", weights_only=False)
    x = torch.randn(3, 2, 8, 8)
    assert torch.equal(again(x), module(x))
    module.train()(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters() if p.requires_grad)


def test_the_last_batch_of_a_loader_is_said_to_be_smaller() -> None:
    torch.manual_seed(0)
    step = fqt_deploy.compile(nn.Linear(4, 2), example_inputs=(torch.zeros(6, 4), torch.zeros(6, dtype=torch.int64)))
    with pytest.raises(FqtError) as caught:
        step(torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64))
    assert caught.value.code == "FQT505"
    assert "drop_last=True" in (caught.value.hint or "")


def test_signs_pass_gradients_straight_through_where_magnitudes_are_small() -> None:
    x = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0], requires_grad=True)
    signs = signs_of(x)
    assert signs.tolist() == [-1, -1, -1, 1, 1]
    signs.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


class Padded(Residual):
    """Zeros in front of a 1-bit convolution: the step makes them padding, a module would take their signs."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.ZeroPad2d(3), nn.Conv2d(32, 64, 3, stride=2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(torch.relu(self.hidden(self.down(x + self.body(x)).mean((2, 3)))))


@pytest.mark.thorough
def test_a_module_that_would_predict_something_else_is_refused() -> None:
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    example = torch.randn(6, 2, 8, 8, generator=g), torch.randint(0, 5, (6,), generator=g)
    step = fqt_deploy.compile(Padded(), example_inputs=example, include=["down.1"], **FEW_KERNELS)
    with pytest.raises(FqtError, match="would predict something else") as caught:
        step.to_torch()
    assert caught.value.code == "FQT513"


class Rectified(Residual):
    """A layer that reads what is never negative, which gets a grid without signs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.down(torch.relu(x + self.body(x))).mean((2, 3))
        return self.head(torch.relu(self.hidden(x)))


SEVERAL = {"body.*": (1, 2), "down": (1, 8), "hidden": (1, 3)}


@pytest.mark.thorough
def test_activations_of_several_bits(tmp_path: Any) -> None:
    torch.manual_seed(0)
    step = compiled(Rectified(), bits=SEVERAL)
    module = step.to_torch()
    grids = {name: m.grid for name, m in module.named_modules() if isinstance(m, BinaryConv2d | BinaryLinear)}
    assert {name: (grid.bits, grid.signed) for name, grid in grids.items()} == {
        "body.0": (2, True), "down": (8, False), "hidden": (3, True)
    }  # fmt: skip
    torch.save(module, tmp_path / "module.pt")
    again = torch.load(tmp_path / "module.pt", weights_only=False)
    x = torch.randn(17, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(again(x).detach().numpy(), step.predict(x), rtol=1e-5, atol=1e-5)
    step.save(tmp_path / "step.fqt")
    loaded = fqt_deploy.load(tmp_path / "step.fqt")
    assert recorded_grids(loaded.manifest) == recorded_grids(step.manifest) != {}


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_grid_is_that_of_the_compiled_ops(bits: int, signed: bool) -> None:
    x = torch.cat([torch.randn(500, generator=torch.Generator().manual_seed(0)) * 2**bits, torch.tensor(EDGES)])
    x.requires_grad_(True)
    grid = Grid(bits, signed, 0.37)
    levels = grid.levels(x)
    given = x.detach(), grid.spacing, bits, signed
    assert torch.equal(levels, torch.ops.fqt.activation_levels(*given))
    assert torch.equal(grid.levels(x.detach()), levels)
    (gradient,) = torch.autograd.grad((levels * grid.unit).sum(), x)
    passed = torch.ops.fqt.level_straight_through(torch.ones_like(x), *given)
    torch.testing.assert_close(gradient, passed)


@pytest.mark.thorough
def test_the_module_of_a_step_with_one_bit_of_a_fitted_grid_predicts_what_the_step_predicts() -> None:
    torch.manual_seed(0)
    rectified = Residual()
    rectified.body[2] = nn.ReLU()
    rectified.body.append(nn.Conv2d(32, 32, 3, padding=1))
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 2, 8, 8, generator=g), torch.randint(0, 5, (6,), generator=g)
    chosen = ["body.0", "body.3", "down"]
    step = fqt_deploy.compile(rectified, example_inputs=(x, y), include=chosen, activation_bits=1, **FEW_KERNELS)
    for _ in range(3):
        step(x, y)
    layers = {layer.path: layer for layer in step.manifest.layers if layer.decision == "1-bit"}
    assert layers.keys() == set(chosen)
    assert {layer.activation_bits for layer in layers.values()} == {1}
    assert [path for path, layer in layers.items() if "activations are 0 or" in layer.reason] == ["body.3"]
    with torch.no_grad():
        torch.testing.assert_close(step.predict(x), step.to_torch()(x), rtol=1e-5, atol=1e-5)


@pytest.mark.thorough
def test_an_artifact_that_does_not_say_its_grids_has_no_module() -> None:
    torch.manual_seed(0)
    step = compiled(Rectified(), bits=SEVERAL)
    recorded = step.manifest.options
    for options, code in (({}, "FQT513"), ({"activation_grids": {"param/down.weight": [2, True]}}, "FQT502")):
        step.manifest = dataclasses.replace(step.manifest, options={**recorded, "activation_grids": {}, **options})
        with pytest.raises(FqtError) as caught:
            step.to_torch()
        assert caught.value.code == code


class Keeping(nn.Module):
    """Keeps numbers of its last pass, as reversible normalization of time series and maps of attention do."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(40, 32), nn.Linear(32, 5)
        self.maps: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.mean = x.mean(1, keepdim=True)
        self.maps = [self.body(x - self.mean)]
        return self.head(self.maps[0].relu()) + self.mean


@pytest.mark.parametrize("ran", [False, True])
def test_a_model_that_keeps_results_has_a_module_and_is_left_as_it_was(ran: bool) -> None:
    torch.manual_seed(0)
    model, (x, y) = Keeping(), (torch.randn(6, 40), torch.arange(6) % 5)
    if ran:
        model(x)
    before = dict(vars(model))
    step = fqt_deploy.compile(model, example_inputs=(x, y), recipe="none", exclude=["*"])
    assert vars(model).keys() == before.keys()
    assert vars(model)["maps"] is before["maps"]
    step(x, y)
    with torch.no_grad():
        torch.testing.assert_close(step.to_torch()(x), step.predict(x), rtol=1e-5, atol=1e-5)


def test_what_is_given_tensors_returns_tensors() -> None:
    step = compiled(Residual())
    x, y = torch.randn(6, 2, 8, 8), torch.randint(0, 5, (6,))
    loss = step(x, y)
    assert isinstance(loss, StepLoss)
    assert isinstance(step.last_logits, torch.Tensor)
    assert step.last_logits.shape == (6, 5)
    of_tensors, of_arrays = step.predict({"x": x[:4]}), step.predict(x[:4].numpy())
    assert isinstance(of_tensors, torch.Tensor)
    assert isinstance(of_arrays, np.ndarray)
    np.testing.assert_array_equal(of_tensors.numpy(), of_arrays)
    step(x.numpy(), y.numpy())
    assert isinstance(step.last_logits, np.ndarray)


def test_a_loss_of_the_outputs_alone_needs_no_targets() -> None:
    """As contrastive losses and those of autoencoders; the step takes the inputs alone."""
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    step = fqt_deploy.compile(model, lambda z, _: (z - 1).square().mean(), example_inputs=(x, None), **FEW_KERNELS)
    losses = [step(x) for _ in range(5)]
    assert losses[-1] < losses[0]
    assert step.predict(x[:3]).shape == (3, 8)
